"""The context of a running callback: what `self.tell` and its like add to the record being built.

Each callback runs in a context of its own, which gathers what the callback asks for. If the callback returns, its asks become
effects of the record; if it raises, they are dropped. Outside a callback there is no context: `not_in_callback`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import msgspec

from agentmesh import names
from agentmesh.budget import Limits
from agentmesh.errors import BadRequest, MeshError, NotInCallback
from agentmesh.identity import Party
from agentmesh.json_values import NO_SUCH_NUMBER, locate, not_finite
from agentmesh.records import CancelTimer, Effect, SendMail, SetTimer, StartAgent, StopAgent
from agentmesh.registry_values import Restart
from agentmesh.structured import AnswerType, Misfit
from agentmesh.wire import Attachment, ErrorBody, PromptBody, check_depth_of, check_time

MAX_PERIOD_S = 3_155_760_000.0
MAX_TAG = 256


class Request(msgspec.Struct, frozen=True):
    """The prompt being handled."""

    ref: str
    label: str | None = None
    sender: str | None = None
    metadata: dict[str, Any] = {}
    attachments: tuple[Attachment, ...] = ()
    chain: tuple[Party, ...] = ()
    """On whose behalf it is made, the oldest first; the agent that sends it, if one does, is the last. It begins with a user
    where the server has told one, else with `unverified`. Empty for a prompt that the agent gives itself."""

    @property
    def caller(self) -> Party | None:
        """The first of the chain: whom all this is for."""
        return self.chain[0] if self.chain else None


class DeferredReply(msgspec.Struct, frozen=True):
    """An ask to answer a deferred request. The turn machine makes it an effect if the request is still open."""

    ref: str
    text: str | None = None
    error: ErrorBody | None = None


type Ask = Effect | DeferredReply


class Context:
    """What one call of a callback may know and ask for."""

    __slots__ = ("_answer_type", "_budget", "_limit", "_now", "_open", "_token", "_trace", "asks", "request", "sender")

    def __init__(
        self,
        *,
        now: Callable[[], float],
        token: Callable[[], str],
        request: Request | None = None,
        sender: str | None = None,
        trace: Callable[[], dict[str, str]] = dict,
        limit: int = 900_000,
        budget: Limits | None = None,
        answer_type: AnswerType[Any] | None = None,
    ) -> None:
        """
        Args:
            budget: what is left of the budget of the request being handled, for requests to other agents.
            answer_type: what the agent's replies must be.
        """
        self._answer_type = answer_type
        self._now = now
        self._budget = budget
        self._token = token
        self._trace = trace
        self._limit = limit
        self._open = True
        self.request = request
        self.sender = sender
        self.asks: list[Ask] = []

    def close(self) -> tuple[Ask, ...]:
        """End the context: later asks (from a task that the callback left behind) raise."""
        self._open = False
        return tuple(self.asks)

    def request_or_raise(self) -> Request:
        if self.request is None:
            raise NotInCallback("no prompt is being handled here: self.request exists in the callbacks of a turn")
        return self.request

    def tell(self, target: str, prompt: str, tag: str | None, metadata: dict[str, Any] | None, *, detached: bool = False) -> None:
        if not isinstance(prompt, str) or not prompt:
            raise BadRequest("tell: the prompt must be a non-empty string")
        if tag is not None and not (isinstance(tag, str) and 0 < len(tag) <= MAX_TAG and tag.isprintable()):
            raise BadRequest(f"tell: a tag is a text of 1 to {MAX_TAG} printable characters, not {tag!r}")
        body = PromptBody(prompt=prompt, metadata=_json(metadata or {}, "metadata"))
        to = names.agent_name(target)
        # The machine knows on behalf of which request this is sent.
        request = None if detached else ""
        trace = self._trace()
        self._add(SendMail(to=to, lane="peer-inbox", prompt=body, tag=tag, budget=self._budget, trace=trace, request=request))

    def notify(self, target: str, event: Any) -> None:
        self._add(SendMail(to=names.agent_name(target), lane="peer-notify", event=_json(event, "event"), trace=self._trace()))

    def reply(self, ref: str, text: str | None, error: MeshError | str | None, answer: Any = None) -> None:
        if sum(given is not None for given in (text, error, answer)) != 1:
            raise BadRequest("reply: give either a text, an answer or an error")
        if answer is not None or (text is not None and self._answer_type is not None):
            text = self._typed(text, answer)
        body = ErrorBody(code="backend_error", message=error) if isinstance(error, str) else None
        if isinstance(error, MeshError):
            body = ErrorBody.of(error)
        self._add(DeferredReply(ref, text, body))

    def _typed(self, text: str | None, answer: Any) -> str:
        """A reply in the canonical form of the agent's type."""
        if self._answer_type is None:
            raise BadRequest("reply: an agent without an answer_type answers with a text")
        try:
            return self._answer_type.canonical(answer) if text is None else self._answer_type.fitting(text)
        except Misfit as misfit:
            raise BadRequest(f"reply: this is no {self._answer_type.name}: {misfit}") from None

    def start_agent(
        self,
        name: str,
        *,
        kind: str,
        backend: str | None,
        options: dict[str, Any],
        labels: dict[str, str],
        restart: Restart | None,
        watchdog_s: float | None,
        if_exists: str,
        link: bool,
    ) -> None:
        if not isinstance(kind, str) or not kind:
            raise BadRequest("start_agent: name the agent's kind")
        if watchdog_s is not None and not 0 < _number(watchdog_s, "start_agent: watchdog_s") <= MAX_PERIOD_S:
            raise BadRequest(f"start_agent: watchdog_s is a number of seconds above 0, not {watchdog_s!r}")
        if if_exists not in ("error", "use"):
            raise BadRequest(f'start_agent: if_exists is "error" or "use", not {if_exists!r}')
        self._add(
            StartAgent(
                name=names.agent_name(name),
                kind=kind,
                backend=backend,
                options=_json(options, "options"),
                labels=labels,
                restart=restart,
                watchdog_s=watchdog_s,
                use=if_exists == "use",
                link=link,
            )
        )

    def stop_agent(self, name: str) -> None:
        self._add(StopAgent(name=names.agent_name(name)))

    def timer(self, event: Any, *, after: float | None, at: float | None, timer_id: str | None, every: float | None) -> str:
        ident = "t" + self._token() if timer_id is None else timer_id
        if at is not None:
            due = _number(at, "notify_at: time")
        else:
            due = self._now() + max(0.0, _number(after, "notify_after: seconds"))
        if every is not None:
            _number(every, "every")
        self._add(timer_of(ident, due, every, _json(event, "event")))
        return ident

    def cancel_timer(self, timer_id: str) -> None:
        self._add(CancelTimer(id=timer_token(timer_id)))

    def _add(self, ask: Ask) -> None:
        if not self._open:
            raise NotInCallback("this callback has returned: what it left running cannot ask for anything more")
        # Sizes are checked when the effect is built: a message above the server's limit would cost the node its connection.
        try:
            encoded = msgspec.json.encode(ask)
            # Constructors do not check the types of their fields, and the journal must stay readable. The copy shares nothing
            # with objects that the agent may still change.
            kept = msgspec.json.decode(encoded, type=type(ask))
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise BadRequest(f"this cannot be asked for: {error}") from None
        if isinstance(kept, SendMail) and kept.prompt is not None:
            check_depth_of(encoded, kept.prompt.metadata)
        size = len(encoded)
        if size > self._limit:
            raise BadRequest(
                f"what this asks for takes {size} bytes; at most {self._limit} can be sent: pass a reference instead"
            )
        self.asks.append(kept)


class _Closed(Context):
    """The context of handle_stream_event and terminate_agent, where its calls do not work."""

    def _add(self, ask: Ask) -> None:
        raise NotInCallback("self.tell and its like do not work in handle_stream_event and terminate_agent")


def closed(request: Request | None) -> Context:
    """A context that knows the request but asks for nothing."""
    return _Closed(now=float, token=str, request=request)


current_context: ContextVar[Context | None] = ContextVar("agentmesh_context", default=None)


def current() -> Context:
    """The context of the callback that runs now.

    Raises:
        NotInCallback: no callback runs now.
    """
    context = current_context.get()
    if context is None:
        raise NotInCallback("self.tell and its like, and an agent's facts, exist only inside its callbacks")
    return context


def timer_token(timer_id: str) -> str:
    """`timer_id`, if an agent or a client may use it.

    Raises:
        BadRequest: it is not one token, or the mesh's own.
    """
    if isinstance(timer_id, str) and timer_id.startswith("_"):
        raise BadRequest("timer ids that begin with '_' are reserved for the mesh")
    return names.token(timer_id, "timer id")


def timer_of(timer_id: str, due: float, every: float | None, event: Any) -> SetTimer:
    """The effect that sets a timer: `due` in seconds since the epoch, `every` in seconds.

    Raises:
        BadRequest: no timer can have this id, time or period.
    """
    if every is not None and not 1 <= every <= MAX_PERIOD_S:
        raise BadRequest(f"a timer's period (`every`) is between a second and a hundred years, not {every!r} s")
    return SetTimer(id=timer_token(timer_id), due=check_time(due), every=every, event=event)


def _number(value: Any, name: str) -> float:
    """`value`, if it is a finite number.

    Raises:
        BadRequest: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRequest(f"{name} is a number, of seconds, not {value!r}")
    return value


def _json(value: Any, name: str) -> Any:
    """`value`, which errors call `name`, as plain JSON data that shares nothing with objects that the agent may still change.

    Raises:
        BadRequest: it cannot be encoded, or is nested so deeply that its receiver would refuse it.
    """
    try:
        body = msgspec.json.encode(value)
        plain = msgspec.json.decode(body)
    except (TypeError, ValueError, msgspec.MsgspecError, OverflowError, RecursionError) as error:
        raise BadRequest(f"{locate(value, name)} cannot be sent: {error}") from None
    if (fault := not_finite(value, body, name)) is not None:
        raise BadRequest(f"{fault}, {NO_SUCH_NUMBER}")
    check_depth_of(body, plain)
    return plain
