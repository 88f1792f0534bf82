"""The operations of control requests to agents: one table, from which subjects, exports, lists of roles and pages are made.

Each may be sent in two forms. `mesh.live.control.<agent>` names the operation in its body, which no permission of the server
sees; `mesh.live.control-<op>.<agent>` names it in its subject, and there the subject alone counts.
"""

from __future__ import annotations

import msgspec

from agentmesh.control_values import ControlRequest
from agentmesh.errors import BadRequest, Unavailable
from agentmesh.wire import ErrorBody

CONTROL = "control"
"""The lane of all operations; `control-<operation>` is that of one."""


class ControlOperation(msgspec.Struct, frozen=True):
    """One operation."""

    name: str
    meaning: str
    """What it does, for pages and helps."""
    content: bool = False
    """It shows or takes what agents know: it is given only on purpose."""
    between_agents: bool = False
    """Nodes send it to each other on behalf of agents: no user is given it."""


OPERATIONS: dict[str, ControlOperation] = {
    operation.name: operation
    for operation in (
        ControlOperation("status", "what the agent does: state, queue, current request, usage; not its state's content"),
        ControlOperation("state", "the status with the content of the agent's state", content=True),
        ControlOperation("poll", "what became of a request, by its ref"),
        ControlOperation("interrupt", "end the running turn"),
        ControlOperation("cancel", "take a request back that waits, or end one"),
        ControlOperation("resume", "let a halted or failed agent go on"),
        ControlOperation("reply", "answer a deferred request", content=True),
        ControlOperation("resend", "send a dead letter again", content=True),
        ControlOperation("set_timer", "have an event come later"),
        ControlOperation("cancel_timer", "take a timer back"),
        ControlOperation("set", "change the configuration of a running agent"),
        ControlOperation("open", "which requests between agents are open", between_agents=True),
    )
}
GIVEN: tuple[str, ...] = tuple(name for name, operation in OPERATIONS.items() if not operation.between_agents)
"""The operations that a caller can be given."""


def operation(name: str) -> ControlOperation:
    """The operation of that name, as a caller can be given it.

    Raises:
        BadRequest: there is none.
    """
    if name not in GIVEN:
        raise BadRequest(f"there is no control request {name!r}; there are: {', '.join(GIVEN)}")
    return OPERATIONS[name]


class _Refusal(msgspec.Struct):
    error: ErrorBody | None = None


_decoder = msgspec.json.Decoder(ControlRequest)
_refusal = msgspec.json.Decoder(_Refusal)


def is_control(lane: str) -> bool:
    """Whether messages to an agent on this lane are control requests."""
    return lane == CONTROL or lane.startswith("control-")


def request_in(lane: str, body: bytes) -> ControlRequest:
    """The control request in a message on this lane.

    Raises:
        msgspec.DecodeError, RecursionError: the body is none.
        BadRequest: the operation is not known; or the body names another one than the subject.
    """
    if lane == CONTROL:
        return _whole(_decoder.decode(body))
    named = lane.removeprefix(f"{CONTROL}-")
    request = _decoder.decode(body) if body else ControlRequest()
    if named not in OPERATIONS:
        raise BadRequest(f"unknown operation {named[:40]!r}; there are: {', '.join(OPERATIONS)}")
    if request.op not in ("", named):
        raise BadRequest(f"the subject asks for {named!r} and the body for {request.op[:40]!r}: here the subject counts")
    if named == "status" and request.content:
        raise BadRequest("a status shows no content; ask control-state for it")
    return _whole(msgspec.structs.replace(request, op=named))


def error_in(reply: bytes) -> ErrorBody | None:
    """The error that a control request was answered with, if it was.

    Raises:
        msgspec.DecodeError: the reply is none.
    """
    return _refusal.decode(reply).error


def of_older_build(agent: str, op: str, error: ErrorBody) -> ErrorBody:
    """`error`, which the owner of `agent` has given for the operation `op` of the table; `unavailable` with its cause if that is
    the owner's build, which does not know the operation."""
    if error.code != BadRequest.code or not error.message.startswith(f"unknown operation {op!r}"):
        return error
    text = (
        f"the node of agent {agent!r} is of an older build, which does not know the control request {op!r}; update it "
        "(`mesh nodes` shows the versions)"
    )
    return ErrorBody.of(Unavailable(text, details={"agent": agent, "op": op}))


def _whole(request: ControlRequest) -> ControlRequest:
    """`request`, of which a state is a status with content."""
    return msgspec.structs.replace(request, op="status", content=True) if request.op == "state" else request
