"""Control requests: what only the owner of an agent can answer (docs/protocol.md#control-requests)."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec

from agentmesh.control_operations import error_in, of_older_build
from agentmesh.control_values import Configuration, ControlRequest
from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.permissions import Permissions
from agentmesh.edge.retry import CALL_RETRY
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.edge.transport import Disconnected, Headers, Message, NoResponders, RequestTimeout, Transport
from agentmesh.errors import AskTimeout, NotPermitted, Unavailable
from agentmesh.keys import KEY
from agentmesh.subjects import Subjects
from agentmesh.wire import ErrorBody, Outcome, encode
from agentmesh_client.results import Subrequest
from agentmesh_client.retry import is_absent
from agentmesh_client.spec_cache import SpecCache, unknown, waiting

LOOK_S = 1.0
"""Wait for the registry's view of an agent that nobody answers for."""
SETTLE_S = 2.0
"""How long a node that has just come may take to be given the agents that waited for it."""
ATTEMPT_S = 2.0
"""Wait for one reply to a request that may be repeated."""
SILENCE_S = 1.0
"""How long an owner may say nothing to a request whose subject names its operation, before a gateway is asked whether any process
knows this form."""


class ControlReply(msgspec.Struct, frozen=True, kw_only=True):
    """Any reply but a status."""

    error: ErrorBody | None = None
    interrupted: bool = False
    callback: str | None = None
    """`interrupt`: the callback that runs."""
    plain: bool = False
    """It is a plain function, which cannot be cancelled."""
    cancelled: bool = False
    replied: bool = False
    resumed: bool = False
    status: str | None = None
    outcome: Outcome | None = None
    due: str | None = None
    ref: str | None = None
    set: bool = False
    configuration: Configuration | None = None
    withdrawn: tuple[Subrequest, ...] = ()


class Control:
    """Sends control requests, and waits through takeovers."""

    def __init__(self, transport: Transport, subjects: Subjects, specs: SpecCache, access: Permissions | None = None) -> None:
        """`access`: what this user may do; None: nobody restricts it."""
        self._access = access
        self._transport = transport
        self._subjects = subjects
        self._specs = specs

    async def ask[T](
        self, agent: str, request: ControlRequest, reply: type[T], *, timeout: float, repeat: bool, key: str | None = None
    ) -> T:
        """The owner's reply, decoded as `reply`, within `timeout` seconds.

        `key`: the `Mesh-Key` of the request that it is about.
        `repeat`: the request may be sent again when its reply does not come (it only reads, or doing it twice does no harm).

        Raises:
            NotFound: there is no such agent.
            Unavailable: nobody owns the agent at the moment, or NATS cannot be reached.
            AskTimeout: its owner does not answer.
            NotPermitted: the server forbids it in either form.
            MeshError: the owner refused.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        end = began + timeout
        subject, body = await self._addressed(agent, request)
        headers = None if key is None else {KEY: key}
        last: Exception | None = None
        refused: NotPermitted | None = None
        for pause in CALL_RETRY:
            left = max(end - loop.time(), 0.05)
            sent = self._transport.connected
            try:
                message = await self._sent(agent, subject, body, headers, min(left, ATTEMPT_S) if repeat else left)
            except NotPermitted as error:
                if refused is not None or subject != self._subjects.control(agent):
                    raise refused or error from None
                # The server did not say what this user may do; one operation may be permitted where all are not.
                refused = error
                subject, body = self._by_operation(agent, request)
                continue
            except NoResponders as error:
                last = error
                await self._check_absence(agent, loop.time() - began)
            except (RequestTimeout, Disconnected) as error:
                # A last try that had no time left says nothing of an owner that was not there until then.
                if not (repeat and left < ATTEMPT_S and isinstance(last, NoResponders) and isinstance(error, RequestTimeout)):
                    last = error
                if sent and not repeat:
                    break  # the owner may have got it
            else:
                return _decoded(message, reply, agent, request.op)
            if loop.time() + pause >= end:
                break
            await asyncio.sleep(pause)
        raise await self._gave_up(agent, request.op, timeout, last)

    async def _sent(self, agent: str, subject: str, body: bytes, headers: Headers | None, timeout: float) -> Message:
        """The reply to a request. Where the subject names its operation and nobody says anything, a gateway is asked: gateways
        send such requests on to owners of an older build, so one answers unless all processes are of one.

        Raises:
            Unavailable: all are.
            NoResponders, RequestTimeout, Disconnected, NotPermitted: as `Transport.request`.
        """
        request = self._transport.request(subject, body, headers=headers, timeout=timeout)
        if subject == self._subjects.control(agent) or timeout <= SILENCE_S:
            return _of_owner(await request)
        waiting = asyncio.ensure_future(request)
        try:
            await asyncio.wait((waiting,), timeout=SILENCE_S)
            if not waiting.done():
                await self._check_gateways(agent)
            return _of_owner(await waiting)
        finally:
            await cancel_and_wait(waiting)

    async def _check_gateways(self, agent: str) -> None:
        """
        Raises:
            Unavailable: no process of the mesh knows what only this build and newer ones know.
        """
        try:
            await self._transport.request(self._subjects.poll(agent), b'{"ref":"0"}', timeout=LOOK_S)
        except NoResponders:
            raise Unavailable(
                f"the owner of agent {agent!r} says nothing, and no process of the mesh knows requests as this user may send "
                "them: all that run are of an older build; update the supervisors, or one of the nodes",
                details={"agent": agent},
            ) from None
        except EDGE_ERRORS:
            return  # nothing is known: the request may still be answered

    async def _addressed(self, agent: str, request: ControlRequest) -> tuple[str, bytes]:
        """Subject and body of a request: its operation stands in the subject where this user may send it by that one only."""
        subject = self._subjects.control(agent)
        if self._access is not None and await self._access.forbids(subject):
            return self._by_operation(agent, request)
        return subject, encode(request)

    def _by_operation(self, agent: str, request: ControlRequest) -> tuple[str, bytes]:
        op = "state" if request.op == "status" and request.content else request.op
        return self._subjects.control_op(op, agent), encode(msgspec.structs.replace(request, op="", content=False))

    async def _check_absence(self, agent: str, waited: float) -> None:
        """Raise if waiting for an owner is in vain: no mesh, no agent, or none of the live nodes can run it."""
        try:
            async with asyncio.timeout(LOOK_S):
                spec = await self._specs.read(agent)
        except TimeoutError:
            return  # the request is tried again, and so is this
        except NotPermitted:
            if waited > SETTLE_S:  # longer than a takeover takes
                raise nobody(agent) from None
            return
        except Unavailable as error:
            if is_absent(error, waited):
                raise
            return
        if spec is None or spec.status == "stopped":
            raise unknown(agent, spec)
        # A node that has just come takes a moment to be given the agents that waited for it.
        if spec.status == "wanted" and spec.reason is not None and waited > SETTLE_S:
            raise waiting(agent, spec)

    async def _gave_up(self, agent: str, op: str, timeout: float, last: Exception | None) -> Exception:
        """The error to raise."""
        if isinstance(last, NoResponders):
            with suppress(TimeoutError, NotPermitted):
                async with asyncio.timeout(LOOK_S):
                    spec = await self._specs.read(agent)
                return unknown(agent, spec) if spec is None or spec.status == "stopped" else waiting(agent, spec)
            return nobody(agent)
        if isinstance(last, Disconnected):
            return Unavailable("there is no connection to NATS now; it is being restored, try again")
        return AskTimeout(
            f"the owner of agent {agent!r} did not answer {op!r} within {timeout:g} s; see `mesh ps` for its node",
            details={"agent": agent},
        )


def nobody(agent: str) -> Unavailable:
    """The error for an agent that nobody answers for, and whose spec cannot be read."""
    return Unavailable(
        f"nobody answers for agent {agent!r}: no agent has the name, or it waits for a node; this user may not see which",
        details={"agent": agent},
    )


def _of_owner(message: Message) -> Message:
    """
    Raises:
        NoResponders: it is a gateway's word that the agent has no owner now.
    """
    with suppress(msgspec.DecodeError):
        error = error_in(message.data)
        if error is not None and error.code == Unavailable.code and error.details.get("nobody"):
            raise NoResponders(error.message)
    return message


def _decoded[T](message: Message, reply: type[T], agent: str, op: str) -> T:
    """
    Raises:
        MeshError: the owner refused.
    """
    try:
        error = error_in(message.data)
        if error is not None:
            raise of_older_build(agent, op, error).exception()
        return msgspec.json.decode(message.data, type=reply)
    except msgspec.DecodeError as error:
        raise Unavailable(
            f"the agent's owner answered in a form that this client does not know ({error}); is its version newer?"
        ) from None
