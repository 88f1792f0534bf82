"""What the client's calls return."""

from __future__ import annotations

import datetime as dt
from typing import Any, Generic, Literal

import msgspec

from agentmesh.control_values import Activity, Configuration, OpenRequest
from agentmesh.errors import BadAnswer
from agentmesh.registry_values import AgentStatus, NodeLease, Spec
from agentmesh.structured import A, AnswerType, answer_of
from agentmesh.wire import VERSION, ErrorBody, Outcome


class Response(msgspec.Struct, Generic[A], frozen=True, kw_only=True):
    """An agent's answer to one prompt. `Response[Plan]` is one that was asked for with `answer_type=Plan`."""

    text: str
    ref: str
    """Names the request: `Mesh.poll` finds its outcome while results are kept (1 h by default)."""
    usage: dict[str, Any] | None = None
    turn: int | None = None
    node: str | None = None
    duration_ms: int | None = None
    session_id: str | None = None
    answer: A = None  # type: ignore[assignment]  # without an answer_type there is none
    """The answer as a value of the type that its caller has asked for; `text` is its JSON."""

    @staticmethod
    def of(outcome: Outcome, answer_type: AnswerType[Any] | None = None) -> Response[Any]:
        """The answer in `outcome`.

        Raises:
            MeshError: the request ended with an error; its class follows the code, its `details` hold the ref.
            BadAnswer: the answer is not of that type.
        """
        if not outcome.ok:
            failure = outcome.error or ErrorBody(code="error", message="the request ended with an error that has no body")
            error = failure.exception()
            error.details.setdefault("ref", outcome.ref)
            raise error
        try:
            answer = answer_of(outcome, answer_type) if answer_type is not None else None
        except BadAnswer as error:
            error.details["ref"] = outcome.ref
            raise
        return Response(
            text=outcome.text or "",
            ref=outcome.ref,
            usage=outcome.usage,
            turn=outcome.turn,
            node=outcome.node,
            duration_ms=outcome.duration_ms,
            session_id=outcome.session_id,
            answer=answer,
        )


class Subrequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request that an agent has sent to another one on behalf of a request of its own."""

    agent: str
    """The agent that was asked."""
    origin: str
    """By which that agent knows the request, together with its sender."""
    ref: str | None = None
    """The request's ref there, if it was open when it was looked for."""
    ended: bool = False
    """Whether it is known to have ended."""


class EndedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the end of a request has ended with it."""

    done: bool
    """Whether there was something to end."""
    withdrawn: tuple[Subrequest, ...] = ()


class PollResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether a request has ended, and how. JSON of it is the reply of the protocol's `poll`."""

    status: Literal["pending", "completed"]
    outcome: Outcome | None = None
    """Set when `completed`; `outcome.ok` tells an answer from an error."""
    reason: ErrorBody | None = None
    """Why it is pending, where no agent has the name: the request waits for one to be started."""

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self.outcome is not None


class AgentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that `Mesh.start_agent` has started."""

    name: str
    kind: str
    node: str | None
    """The node that runs it; None when the call did not wait for one."""
    incarnation: str
    """Tells this life of the name from earlier and later ones."""
    status: AgentStatus
    existed: bool = False
    """The agent was there already, and is used (`if_exists="use"`)."""


class AgentUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What `Mesh.update_agent` has done."""

    name: str
    changed: bool
    """False: all was so already."""
    configuration: Configuration | None = None
    """What is in force now; None if the labels were changed: `Mesh.status` shows it once the agent is where they lead it."""


class Interruption(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an interrupt did."""

    interrupted: bool
    callback: str | None = None
    """The callback that ran: it was cancelled, or not touched."""
    plain: bool = False
    """It is a plain function, which nothing can cancel: it goes on in its thread, and what it returns is thrown away."""
    withdrawn: tuple[Subrequest, ...] = ()
    """What others were asked on behalf of the request, and is withdrawn with it."""


class ChangeEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A change of an agent's configuration while it ran, as its journal shows it."""

    number: int = msgspec.field(name="set")
    """Counts the changes of a life, from 1; in JSON it is called `set`."""
    at: dt.datetime
    after_turn: int
    """The newest turn before it; 0: there was none."""
    node: str
    values: dict[str, Any]
    """By the name of a part its new value; long ones are described. Of the backend options those that were given, null for those
    that were removed."""


class AgentEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One agent as the registry shows it."""

    name: str
    spec: Spec
    node: str | None = None
    """The node that it is placed on, if any."""
    activity: Activity | None = None
    """What it is doing, where that was asked for; None while it sleeps, or if its node does not say."""


class NodeEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One live node as the registry shows it."""

    id: str
    lease: NodeLease


class TimerSet(msgspec.Struct, frozen=True, kw_only=True):
    """A durable timer that has been set."""

    id: str
    due: dt.datetime | None
    """When it fires first (UTC); None when the owner did not say."""


class ClosedRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a request ended that the agent had deferred."""

    error: ErrorBody | None = None
    """None: it was answered."""
    answer: str | None = None
    """The first 1,000 characters, if content is asked for."""


class TurnEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One turn that an agent has had, as its journal shows it."""

    turn: int
    ref: str
    """The request's ref; for a prompt that was not mail, the ref that the agent gave it."""
    started: dt.datetime
    ended: dt.datetime
    node: str
    """The node that ran it to its end."""
    generation: int
    takeovers: int = 0
    """How often the agent changed hands since it was last known to be at rest or had ended a turn."""
    sender: str | None = None
    """The agent that asked; None for the world outside and for the agent itself."""
    chain: str = ""
    """On whose behalf its request was, the oldest first; empty if no user is known."""
    label: str | None = None
    error: ErrorBody | None = None
    usage: dict[str, Any] | None = None
    deferred: OpenRequest | None = None
    """The agent has deferred the request, and it is still open."""
    closed: ClosedRequest | None = None
    """The agent has deferred the request, and it has ended since; as long as the journal has the records of both."""
    prompt: str | None = None
    """The first 1,000 characters, if content is asked for; the same holds for `answer`."""
    answer: str | None = None
    tools: dict[str, dict[str, int]] = {}
    """The tools that ran, and how often each ended in which way (see `Outcome.tools`)."""
    note: str | None = None
    """What the tools of a turn without an answer did: calls, arguments and ends, if content is asked for."""
    code: tuple[str, ...] = ()
    """The versions of the agent's code with which it began and ended, if no node was left that served the first."""


class UnclaimedMail(msgspec.Struct, frozen=True, kw_only=True):
    """Mail for a name that no agent has: it waits for one, for an hour by default, and is dead letters then."""

    agent: str
    messages: int
    oldest: dt.datetime
    """When the oldest of them was stored."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Mail that an agent could not deal with."""

    seq: int
    """Names the letter."""
    agent: str
    lane: str
    """Where it came from: a mail lane, or `self` for a prompt that the agent gave itself."""
    time: dt.datetime
    """When it became a dead letter."""
    reason: ErrorBody
    ref: str | None = None
    """The request's ref, if it was mail."""
    sender: str | None = None
    chain: str = ""
    """On whose behalf it was, the oldest first; empty if no user is known."""
    text: str | None = None
    """The body, if content is asked for; `base64` holds a body that is no text."""
    base64: str | None = None


type WaitKind = Literal["ask", "tell", "turn", "tag"]
type WaitStage = Literal["sent", "queued", "running", "deferred", "answered"]
type OwingState = Literal["running", "idle", "halted", "failed", "stuck", "not_placed", "stopping", "stopped", "no_agent"]


class WaitEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request that has no answer yet: who waits for it, and who owes it."""

    waiter: str | None
    """The agent that waits; None: the world outside."""
    agent: str
    """The agent that owes the answer."""
    kind: WaitKind
    """`ask`: a client that gave a reply subject; `turn`: an agent in the middle of a turn; `tag`: an agent that gets the answer
    as an event; `tell`: nobody is told the outcome."""
    stage: WaitStage
    """`sent`: on its way; `queued`: in the mailbox; `running`: its turn has begun, or comes next; `deferred`: the agent keeps it
    open; `answered`: the journal has the answer, which is on its way back."""
    state: OwingState
    """What the agent that owes is doing. `stuck`: its node cannot run it, since its journal is damaged or too new; `not_placed`:
    no live node has it; `no_agent`: there is none of that name."""
    ref: str | None = None
    """The request's ref at the agent that owes; None while it is not known to be there."""
    request: str | None = None
    """The ref of the waiter's own request on whose behalf it was made."""
    origin: str | None = None
    """By which both agents know the request, if an agent made it (docs/architecture.md#origins)."""
    since: dt.datetime | None = None
    """When the request was made; None if a build did that which did not say."""
    deadline: dt.datetime | None = None
    """When it ends by itself, as it stands now; None: it does not."""
    exclusive: bool = False
    """It is deferred so that other prompts wait for it."""
    node: str | None = None
    """The node of the agent that owes."""
    reason: ErrorBody | None = None
    """Why that agent has failed, is stuck or waits for a node."""


class WaitCircle(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Agents of which each waits for the next, and the last for the first."""

    agents: tuple[str, ...]
    blocked: bool
    """None of them takes another prompt before its wait is over: each waits in the middle of a turn, or on behalf of a request
    that it has deferred exclusively. The others may still answer."""
    deadline: dt.datetime | None = None
    """When the first of these waits ends by itself."""
    others: tuple[str, ...] = ()
    """Further agents that are in circles with these."""


class WaitGraph(msgspec.Struct, frozen=True, kw_only=True):
    """Who waits for whom."""

    v: int = VERSION
    waits: tuple[WaitEntry, ...] = ()
    """The oldest first."""
    circles: tuple[WaitCircle, ...] = ()
    agents: int = 0
    """How many names were looked at: all of the registry, and those for which mail waits."""
    read: int = 0
    """Of how many the mail and the journal were read, since they were not at rest."""
    unread: tuple[str, ...] = ()
    """Agents whose journals cannot be read: for whom they wait is not known."""
