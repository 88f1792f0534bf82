"""Every error of the mesh: one tree. The classes that are raised have a stable `code`.

    MeshError
    ├── RequestError         the request was refused; nothing happened
    │   ├── BadRequest            bad_request       mend the request
    │   ├── TooLarge              too_large         send less, or a reference
    │   ├── NotFound              not_found         start the agent, or check the name
    │   ├── AlreadyStarted        already_started   choose another name, or stop the first
    │   ├── Conflict              conflict          look again, and decide anew
    │   ├── MailboxFull           mailbox_full      send again later
    │   ├── NotPermitted          not_permitted     ask who runs the mesh, or the agent, for it
    │   ├── NotInCallback         not_in_callback   self.tell and its like work in callbacks only
    │   └── InvalidAgent          invalid_agent     mend the agent's class
    ├── TurnError            the request was accepted and ended without an answer
    │   ├── TurnTimeout           timeout           ├── Interrupted         interrupted
    │   ├── TaskCrashed           task_crashed      ├── NoTerminalEvent     no_terminal_event
    │   ├── BackendError          backend_error     ├── PreTurnSkipped      pre_turn_skipped
    │   ├── PreTurnHalted         pre_turn_halted   ├── PreTurnInvalid      pre_turn_invalid
    │   ├── BadReturn             bad_return        ├── BadState            bad_state
    │   ├── Expired               expired           ├── Stopped             stopped
    │   ├── AgentFailed           failed            ├── DeadLetter          dead_letter
    │   ├── Cancelled             cancelled         ├── Cycle               cycle
    │   ├── BudgetExceeded        budget_exceeded
    │   └── BadAnswer             bad_answer
    ├── StartError           an agent's life could not begin
    │   ├── InitFailed            init_failed            ├── PreRunFailed   pre_run_failed
    │   ├── BackendStartFailed    backend_start_failed   └── PreRunCrashed  pre_run_crashed
    └── InfrastructureError  the mesh itself cannot do it now
        ├── Unavailable           unavailable       no server, or no leader: try again
        │   ├── NoLeader          no_leader         too few servers of a stream are up: bring the others back
        │   ├── StoreFull         store_full        the server's storage is full: free space, or raise the limit
        │   ├── StreamMissing     stream_missing    a stream of the mesh is not there: run `mesh setup`
        │   └── UnreadableRecord  unreadable_record a journal holds what this program cannot read: upgrade it, or restore that
        ├── AskTimeout            timeout           the caller's own patience ended; the turn still runs: poll the ref
        ├── Busy                  busy              no thread is left in this process: try later, or restart it
        ├── TlsFailed             tls_failed        no TLS with the server: mend its address, or the certificates
        ├── ServerTooOld          server_too_old    upgrade nats-server
        ├── WrongDomain           wrong_domain      a message was stored in another mesh of this root: give one another root
        ├── ConfigMismatch        config_mismatch   a stream exists with another configuration
        ├── Fenced                fenced            another owner has appended; internal
        └── StoreLost             store_lost        the store has lost committed data: restore it

`code` is what travels on the wire; `error_for` turns a code back into its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class MeshError(Exception):
    """Base of all errors of the mesh. `message` says what happened and what to do next; `details` is JSON."""

    code: str = "error"

    def __init__(self, message: str = "", *, details: Mapping[str, Any] | None = None) -> None:
        self.message = message or (self.__doc__ or "").strip().splitlines()[0]
        self.details: dict[str, Any] = dict(details or {})
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class RequestError(MeshError):
    """The request was refused; nothing happened."""


class TurnError(MeshError):
    """The request was accepted and ended without an answer."""


class StartError(MeshError):
    """The agent's life could not begin."""


class InfrastructureError(MeshError):
    """The mesh cannot do this now."""


class BadRequest(RequestError):
    """The request is malformed."""

    code = "bad_request"


class TooLarge(RequestError):
    """The message exceeds the mesh's limits; send less, or a reference to it."""

    code = "too_large"


class NotFound(RequestError):
    """No agent or result of that name is known."""

    code = "not_found"


class AlreadyStarted(RequestError):
    """The name is taken; choose another, or stop the agent first."""

    code = "already_started"


class Conflict(RequestError):
    """What was to be changed is not what the caller expects any more; look again, and decide anew."""

    code = "conflict"


class MailboxFull(RequestError):
    """The agent's mailbox is at its bound; send again later."""

    code = "mailbox_full"


class NotPermitted(RequestError):
    """It is not permitted to this user: by the NATS server, by the agent that is asked, or for want of a request's key."""

    code = "not_permitted"


class NotInCallback(RequestError):
    """The calls of a callback's context (tell, notify, start_agent, ...) work only inside callbacks."""

    code = "not_in_callback"


class InvalidAgent(RequestError):
    """The agent's class, kind or backend cannot be used."""

    code = "invalid_agent"


class TurnTimeout(TurnError):
    """The turn ran longer than the agent's watchdog allows and was killed."""

    code = "timeout"


class Interrupted(TurnError):
    """The turn was interrupted."""

    code = "interrupted"


class TaskCrashed(TurnError):
    """The turn's task raised."""

    code = "task_crashed"


class NoTerminalEvent(TurnError):
    """The backend's stream ended without a result or an error."""

    code = "no_terminal_event"


class BackendError(TurnError):
    """The backend refused or failed the turn; `details` may hold `reason` and `retry_after_s`."""

    code = "backend_error"


class PreTurnSkipped(TurnError):
    """The agent's pre_turn skipped the prompt."""

    code = "pre_turn_skipped"


class PreTurnHalted(TurnError):
    """The agent's pre_turn halted the agent instead of running the prompt."""

    code = "pre_turn_halted"


class PreTurnInvalid(TurnError):
    """The agent's pre_turn returned a value of the wrong shape."""

    code = "pre_turn_invalid"


class BadReturn(TurnError):
    """A callback returned a value of the wrong shape."""

    code = "bad_return"


class BadState(TurnError):
    """The agent's new state cannot be encoded, or its stored state cannot be decoded."""

    code = "bad_state"


class Expired(TurnError):
    """The request's deadline passed before its turn."""

    code = "expired"


class Stopped(TurnError):
    """The agent was stopped before it answered."""

    code = "stopped"


class AgentFailed(TurnError):
    """The agent failed on this input more often than allowed, or has failed altogether; see `mesh status`."""

    code = "failed"


class DeadLetter(TurnError):
    """The input was set aside as a dead letter."""

    code = "dead_letter"


class Cancelled(TurnError):
    """The waiting prompt was cancelled."""

    code = "cancelled"


class Cycle(TurnError):
    """The agent asked waits, up the chain, for the agent that asks."""

    code = "cycle"


class BudgetExceeded(TurnError):
    """The request's or the agent's budget is spent."""

    code = "budget_exceeded"


class BadAnswer(TurnError):
    """The answer is not of the type that the agent, or its caller, has declared; `details` has `problem` and `text`."""

    code = "bad_answer"


class InitFailed(StartError):
    """init_agent failed."""

    code = "init_failed"


class BackendStartFailed(StartError):
    """The backend could not start a session."""

    code = "backend_start_failed"


class PreRunFailed(StartError):
    """pre_run returned an error."""

    code = "pre_run_failed"


class PreRunCrashed(StartError):
    """pre_run raised."""

    code = "pre_run_crashed"


class Unavailable(InfrastructureError):
    """The server, or the leader of a stream, cannot be reached now; try again."""

    code = "unavailable"


class NoLeader(Unavailable):
    """A stream has no leader: too few of the servers that hold it are up and reach each other."""

    code = "no_leader"


class StoreFull(Unavailable):
    """The server's storage is full; free space on its disk, or raise its limit."""

    code = "store_full"


class StreamMissing(Unavailable):
    """A stream of the mesh does not exist (any more); restore it from its backup, or run `mesh setup`."""

    code = "stream_missing"


class UnreadableRecord(Unavailable):
    """A journal holds a record that this program cannot read; upgrade its node, or restore the journal."""

    code = "unreadable_record"


class AskTimeout(InfrastructureError):
    """The caller's own patience ended; the turn still runs: poll its ref (`details['ref']`)."""

    code = "timeout"


class Busy(InfrastructureError):
    """This process can start no more threads: functions that hang in theirs must end, or the process be restarted."""

    code = "busy"


class TlsFailed(InfrastructureError):
    """No TLS connection can be made with the NATS server; check its address and the certificates."""

    code = "tls_failed"


class ServerTooOld(InfrastructureError):
    """The NATS server is too old."""

    code = "server_too_old"


class WrongDomain(InfrastructureError):
    """A message was stored in another JetStream domain than the mesh's: two meshes of one root hear each other."""

    code = "wrong_domain"


class ConfigMismatch(InfrastructureError):
    """A stream or bucket of the mesh exists with another configuration."""

    code = "config_mismatch"


class Fenced(InfrastructureError):
    """Another owner has appended to the journal since."""

    code = "fenced"


class StoreLost(InfrastructureError):
    """The store has lost a record that it had acknowledged; restore it from its backup."""

    code = "store_lost"


class UnknownError(MeshError):
    """An error whose code this version does not know."""

    def __init__(self, message: str = "", *, code: str = "error", details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, details=details)
        self.code = code


def _coded(cls: type[MeshError]) -> list[type[MeshError]]:
    """The classes below `cls` that have a code of their own."""
    below = [found for sub in cls.__subclasses__() for found in _coded(sub)]
    return [cls, *below] if "code" in vars(cls) else below


class _Codes:
    by_code: ClassVar[dict[str, type[MeshError]]] = {}


for _class in _coded(MeshError):
    if _class not in (MeshError, UnknownError, AskTimeout):  # `timeout` on the wire is the turn's
        _Codes.by_code[_class.code] = _class


def error_for(code: str, message: str, details: Mapping[str, Any] | None = None) -> MeshError:
    """The exception that a wire error stands for; an unknown code gives `UnknownError` bearing it."""
    cls = _Codes.by_code.get(code)
    if cls is None:
        return UnknownError(message, code=code, details=details)
    return cls(message, details=details)
