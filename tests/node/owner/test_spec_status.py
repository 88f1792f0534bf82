"""An agent's status in its spec: in order, until the registry has it, and never over what somebody else has made of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import get_args

import msgspec
import pytest

from agentmesh.configuration import noted, shown_in
from agentmesh.control_values import Adjustment
from agentmesh.edge.transport import Message
from agentmesh.records import Ledger, Overrides
from agentmesh.registry_values import AgentStatus, Spec
from agentmesh.subjects import spec_key
from agentmesh.wire import ErrorBody, encode, parse_time
from agentmesh_node.owner.spec_status import KEEP_STOPPED_S, StatusWriter
from node.simulated import SimulatedNode, simulate
from sim.store import Stored
from support import Fault, never_sent, reply_lost

AGENT = "a"
WHY = ErrorBody(code="halted", message="it failed too often")
ALLOWED = {
    ("wanted", "running"), ("failed", "running"), ("wanted", "failed"), ("running", "failed"),
    ("wanted", "stopping"), ("running", "stopping"), ("failed", "stopping"), ("stopping", "stopped"),
}  # fmt: skip
STATUSES: tuple[AgentStatus, ...] = get_args(AgentStatus.__value__)


GOOD = Spec(kind="Doll", incarnation="life", status="running", options={"depth": 3})
"""What the owner has seen last."""


class Shown:
    """A status writer, and what the registry has."""

    def __init__(self, node: SimulatedNode) -> None:
        self.node = node
        self.key = node.subjects.registry_key(spec_key(AGENT))
        self.writer = StatusWriter(node.services, AGENT, "life", lambda: GOOD)

    async def now(self) -> Spec:
        spec = await self.node.read_spec(AGENT)
        assert spec is not None
        return spec

    def history(self) -> list[Stored]:
        """Every write of the key."""
        return [message for message in self.node.stream("registry").history if message.subject == self.key]

    def statuses(self) -> list[str]:
        return [msgspec.json.decode(message.data, type=Spec).status for message in self.history()]

    def hide_changes(self) -> None:
        """The node sees no change of the spec any more."""
        self.node.faults.lost.add(self.node.subjects.registry_change(spec_key(AGENT)))


def no_fault(reply: Message | None) -> Message:
    """The request is answered as it is."""
    return Message("", b"", {}) if reply is None else reply


def showing(story: Callable[[Shown], Awaitable[None]], **spec: object) -> None:
    async def main(node: SimulatedNode) -> None:
        await node.spec(AGENT, **spec)
        it = Shown(node)
        await story(it)
        await it.writer.close()

    main.__name__ = story.__name__
    simulate(main)


def test_a_status_is_written_with_its_reason_and_the_time() -> None:
    async def story(it: Shown) -> None:
        before = await it.now()
        it.writer.set("failed", WHY)
        busy = [it.writer.busy]
        await it.writer.settled()
        assert [*busy, it.writer.busy] == [True, False]
        after = await it.now()
        assert after.since is not None and abs(parse_time(after.since) - it.node.services.now()) < 1
        assert after == msgspec.structs.replace(before, status="failed", reason=WHY, since=after.since, ran=True)

    showing(story, status="running", options={"depth": 3}, labels={"zone": "b"})


@pytest.mark.parametrize("wanted", STATUSES)
@pytest.mark.parametrize("found", STATUSES)
def test_an_owner_goes_forward_only(found: AgentStatus, wanted: AgentStatus) -> None:
    async def story(it: Shown) -> None:
        it.writer.set(wanted, None)
        await it.writer.settled()
        assert (await it.now()).status == (wanted if (found, wanted) in ALLOWED else found)
        assert len(it.history()) == (2 if (found, wanted) in ALLOWED else 1)

    showing(story, status=found)


def test_what_was_set_is_written_in_that_order() -> None:
    async def story(it: Shown) -> None:
        it.writer.set("running", None)
        it.writer.set("failed", WHY)
        it.writer.set("running", None)
        it.writer.set("stopping", None)
        it.writer.set("stopped", None)
        await it.writer.settled()
        assert it.statuses() == ["wanted", "running", "failed", "running", "stopping", "stopped"]

    showing(story)


def test_why_it_waited_is_over_once_it_runs_and_why_it_stopped_stays() -> None:
    async def story(it: Shown) -> None:
        it.writer.set("running", None)
        await it.writer.settled()
        assert (await it.now()).reason is None
        it.writer.set("stopping", WHY)
        it.writer.set("stopped", None)
        await it.writer.settled()
        assert ((await it.now()).status, (await it.now()).reason) == ("stopped", WHY)

    showing(story, reason=ErrorBody(code="unplaced", message="no node serves its kind"))


def test_only_what_has_stopped_goes_by_itself() -> None:
    async def story(it: Shown) -> None:
        it.writer.set("stopping", None)
        it.writer.set("stopped", None)
        await it.writer.settled()
        assert [message.headers.get("Nats-TTL") for message in it.history()] == [None, None, str(KEEP_STOPPED_S)]

    showing(story, status="running")


def test_another_life_is_not_touched() -> None:
    async def story(it: Shown) -> None:
        it.writer.set("running", None)
        await it.writer.settled()
        assert it.statuses() == ["wanted"]

    showing(story, incarnation="another life")


def test_where_the_spec_is_gone_there_is_nothing_to_write() -> None:
    async def story(node: SimulatedNode) -> None:
        it = Shown(node)
        it.writer.set("running", None)
        await it.writer.settled()
        assert it.history() == []

    simulate(story)


# --- others write too -----------------------------------------------------------------------------------------------
def test_a_change_that_the_copy_does_not_show_yet_is_not_written_over() -> None:
    async def story(it: Shown) -> None:
        it.hide_changes()
        await it.node.spec(AGENT, status="stopping", reason=WHY)
        it.writer.set("running", None)
        await it.writer.settled()
        assert it.statuses() == ["wanted", "stopping"] and (await it.now()).reason == WHY

    showing(story)


def test_fields_that_somebody_else_has_written_meanwhile_are_kept() -> None:
    async def story(it: Shown) -> None:
        it.hide_changes()
        await it.node.spec(AGENT, labels={"zone": "c"})
        it.writer.set("running", None)
        await it.writer.settled()
        assert ((await it.now()).status, (await it.now()).labels) == ("running", {"zone": "c"})

    showing(story)


def test_a_copy_that_shows_the_status_already_is_not_believed() -> None:
    async def story(it: Shown) -> None:
        it.hide_changes()
        await it.node.spec(AGENT, status="failed", reason=WHY)
        it.writer.set("running", None)
        await it.writer.settled()
        assert (await it.now()).status == "running"
        assert it.node.logged("status not written") == [], "at the first try"

    showing(story, status="running")


def test_what_the_copy_shows_as_final_is_looked_at_again() -> None:
    async def story(it: Shown) -> None:
        it.hide_changes()
        await it.node.spec(AGENT)
        it.writer.set("running", None)
        await it.writer.settled()
        assert it.statuses() == ["stopping", "wanted", "running"]

    showing(story, status="stopping")


def test_shown_once_more_it_is_written_anew() -> None:
    async def story(it: Shown) -> None:
        it.writer.set("failed", WHY)
        await it.writer.settled()
        await it.node.spec(AGENT, status="running")
        it.writer.again("failed", WHY)
        await it.writer.settled()
        assert it.statuses() == ["wanted", "failed", "running", "failed"]

    showing(story)


def test_what_was_found_done_just_before_somebody_wrote_is_written_too() -> None:
    async def story(it: Shown) -> None:
        read = f"$JS.API.STREAM.MSG.GET.{it.node.subjects.stream('registry')}"

        def overtaken(reply: Message | None) -> Message:
            """The answer is on its way when somebody writes, and the owner hears of that first."""
            if reply is None:
                return no_fault(reply)
            running = encode(Spec(kind="Doll", incarnation="life", status="running"))
            it.node.stream("registry").publish(it.key, {}, running)
            for _ in range(5):
                it.writer.again("failed", WHY)
            return reply

        it.node.transport.inject(read, no_fault, overtaken)
        it.hide_changes()
        it.node.transport.requests.clear()
        it.writer.set("failed", WHY)
        await it.writer.settled()
        assert it.statuses() == ["failed", "running", "failed"]
        assert it.node.transport.requests == [read, read, read, it.key], "once more is enough"

    showing(story, status="failed")


# --- tries ----------------------------------------------------------------------------------------------------------
def test_it_is_tried_until_the_registry_has_it() -> None:
    async def story(it: Shown) -> None:
        it.node.faults.leaderless.add(it.node.subjects.stream("registry"))
        it.writer.set("running", None)
        await it.node.until(lambda: len(it.node.logged("status not written")) > 3, "it is tried again and again")
        assert it.writer.busy
        it.node.faults.leaderless.clear()
        await it.writer.settled()
        assert it.statuses() == ["wanted", "running"]

    showing(story)


@pytest.mark.parametrize("fault", [never_sent, reply_lost])
def test_a_write_of_unknown_fate_is_looked_for(fault: Fault) -> None:
    async def story(it: Shown) -> None:
        it.hide_changes()
        it.node.transport.inject(it.key, fault)
        it.writer.set("running", None)
        await it.writer.settled()
        assert it.statuses() == ["wanted", "running"]

    showing(story)


@pytest.mark.case(256)
@pytest.mark.parametrize("value", [b"{", b"", b"[" * 5000, b'{"kind":"Doll"}'], ids=["cut off", "empty", "nested", "no life"])
def test_a_spec_of_foreign_form_is_replaced_by_the_last_good_one(value: bytes) -> None:
    async def story(it: Shown) -> None:
        await it.node.write_spec(AGENT, value)
        it.writer.set("failed", WHY)
        await it.writer.settled()
        after = await it.now()
        assert after == msgspec.structs.replace(GOOD, status="failed", reason=WHY, since=after.since, ran=True)
        assert len(it.node.logged("is put back")) == 1

    showing(story)


def test_tries_come_ever_more_slowly_and_begin_anew_with_what_follows() -> None:
    async def story(it: Shown) -> None:
        it.node.faults.leaderless.add(it.node.subjects.stream("registry"))
        it.writer.set("running", None)
        it.writer.set("failed", WHY)
        await it.node.pass_time(20.0)
        assert 8 <= len(it.node.logged("status not written")) <= 18
        it.node.transport.inject(it.key, no_fault, never_sent, never_sent, never_sent)
        it.node.faults.leaderless.clear()
        await it.writer.settled()
        _, first, second = it.history()
        assert 0.1 < second.at - first.at < 1.0

    showing(story)


def test_closed_it_gives_up_what_is_not_written() -> None:
    async def story(it: Shown) -> None:
        it.node.faults.leaderless.add(it.node.subjects.stream("registry"))
        it.writer.set("running", None)
        await it.node.until(lambda: it.node.logged("status not written"), "it is tried")
        await asyncio.wait_for(it.writer.close(), 5)
        assert not it.writer.busy
        it.node.faults.leaderless.clear()
        await it.node.pass_time(10.0)
        assert it.statuses() == ["wanted"]

    showing(story)


def test_settled_returns_when_it_is_closed() -> None:
    async def story(it: Shown) -> None:
        it.node.faults.leaderless.add(it.node.subjects.stream("registry"))
        it.writer.set("running", None)
        waiting = asyncio.ensure_future(it.writer.settled())
        await it.node.pass_time(1.0)
        assert not waiting.done()
        await it.writer.close()
        await asyncio.wait_for(waiting, 5)

    showing(story)


# --- the configuration in force ---------------------------------------------------------------------------------------
@pytest.mark.case(345)
def test_a_status_that_stands_is_written_again_to_show_another_configuration() -> None:
    async def story(it: Shown) -> None:
        before = await it.now()
        it.writer = StatusWriter(it.node.services, AGENT, "life", lambda: GOOD, _with_change(2))
        it.writer.set("running", None)
        await it.writer.settled()
        now = await it.now()
        assert (now.watchdog_s, now.sets, now.status, now.since) == (2.0, 2, "running", before.since)
        written = len(it.history())
        it.writer.again("running", None)
        await it.writer.settled()
        assert len(it.history()) == written, "it is shown already"

    showing(story, status="running", incarnation="life")


@pytest.mark.case(345)
def test_a_former_owner_shows_its_status_and_no_older_configuration() -> None:
    async def story(it: Shown) -> None:
        it.writer = StatusWriter(it.node.services, AGENT, "life", lambda: GOOD, _with_change(2))
        for status in ("running", "failed"):
            it.writer.set(status, WHY if status == "failed" else None)
        await it.writer.settled()
        now = await it.now()
        assert (now.status, now.watchdog_s, now.sets) == ("failed", 9.0, 3)

    showing(story, status="wanted", incarnation="life", watchdog_s=9.0, sets=3)


@pytest.mark.case(345)
def test_another_life_of_the_name_is_shown_nothing() -> None:
    async def story(it: Shown) -> None:
        it.writer = StatusWriter(it.node.services, AGENT, "life", lambda: GOOD, _with_change(2))
        it.writer.set("running", None)
        await it.writer.settled()
        assert (await it.now()).sets == 0 and len(it.history()) == 1

    showing(story, status="running", incarnation="another")


def _with_change(number: int) -> Callable[[Spec], Spec]:
    ledger = Ledger(incarnation="life", overrides=Overrides(watchdog_s=float(number)))
    for count in range(number):
        ledger = noted(ledger, Adjustment(watchdog_s=float(number)), f"r{count}", 1.0)
    return lambda spec: shown_in(spec, ledger)
