"""Whose clock may be wrong, and what that does (docs/architecture.md#time): no deadline passes early by the fault of a node or a
supervisor, while leaders of streams move and owners die."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable

import pytest

from agentmesh.edge.publish import store
from agentmesh.server_clock import WINDOW_S
from agentmesh.subjects import StreamRole
from agentmesh.wire import DEADLINE, TIMEOUT, format_time, parse_time
from rules.scene import PATIENCE_S, Scene, do, open_gate, play
from sim.server import EPOCH

pytestmark = pytest.mark.slow

WRONG_S = (-3600.0, -90.0, 90.0, 3600.0)
EARLY_S = 2.0
"""The most by which a deadline may pass early."""
LATE_S = 8.0
"""And late: a new owner may have to be found first."""
GIVEN_S = 10.0
"""What each prompt is given."""
ROUNDS = 16
SERVERS = ("A", "B", "C")
"""`A` is the one whose clock is wrong."""


class Table:
    """One line of the table: one clock that is wrong, a held agent, and prompts that wait for it until their deadlines."""

    def __init__(self, scene: Scene, server_ahead: float) -> None:
        self.scene = scene
        self._dice = scene.world.dice("leaders")
        self._server_ahead = server_ahead
        self._behind_until: dict[str, float] = {}
        """By stream: until when what its leader has said can make a caller's clock go behind."""
        self.due: dict[str, float] = {}
        """By ref: when the prompt's deadline is, in seconds of virtual time; but for prompts that were dated by a server whose
        clock is behind: they are over before they are read, and no process can know."""

    def elect(self) -> None:
        """Let every stream have another leader."""
        leaders = {stream: self._dice.choice(SERVERS) for stream in sorted(self.scene.server.streams)}
        self.scene.server.ahead = {stream: self._server_ahead for stream, leader in leaders.items() if leader == "A"}
        if self._server_ahead < 0:
            until = self.scene.world.loop.time() + WINDOW_S
            self._behind_until.update(dict.fromkeys(self.scene.server.ahead, until))

    async def prompt(self) -> None:
        """Two prompts: by the SDK with a deadline, and by a plain publish with a time-out."""
        scene, now = self.scene, self.scene.world.loop.time
        by_own_clock = dt.datetime.fromtimestamp(scene.mesh._ambient.now() + GIVEN_S, dt.UTC)
        mail, result = (scene.world.subjects.stream(role) for role in ("mail", "result"))
        began = now()
        ref = await scene.mesh.tell("a", "by the SDK", deadline=by_own_clock)
        if began > max(self._behind_until.get(stream, 0.0) for stream in (mail, result)):
            self.due[ref] = began + GIVEN_S
        began = now()
        plain = await store(scene.mesh.transport, scene.world.subjects.inbox("a"), b"plain", headers={TIMEOUT: f"{GIVEN_S:g}"})
        if scene.server.ahead.get(mail, 0.0) >= 0:
            self.due[str(plain.seq)] = began + GIVEN_S

    def early(self) -> dict[str, float]:
        """By ref of those that have expired: by how many seconds before the deadline; negative: behind it."""
        errors = {ref: outcome.error for ref, outcome in self.scene.results("a").items()}
        subject = self.scene.world.subjects.result("a", "")
        stored = {m.subject.removeprefix(subject): m.at for m in self.scene.history_of("result")}
        return {ref: due - stored[ref] for ref, due in self.due.items() if (e := errors[ref]) is not None and e.code == "expired"}


async def line(scene: Scene, *, server_ahead: float = 0.0) -> dict[str, float]:
    """Play one line of the table; what `Table.early` gives."""
    table = Table(scene, server_ahead)
    await scene.start("a")
    await scene.mesh.tell("a", "gate:table held")
    # One minute, in which a server that is wrong comes to lead something.
    for _ in range(12):
        table.elect()
        await asyncio.sleep(WINDOW_S / 12)
    for number in range(ROUNDS):
        table.elect()
        await table.prompt()
        if number % 6 == 3:
            owner = scene.node_of("a")
            scene.world.kill(owner)
            scene.world.restart(owner)
        await asyncio.sleep(5.0)
    await asyncio.sleep(PATIENCE_S)
    open_gate("table")
    await scene.until(lambda: set(table.due) <= set(scene.results("a")), "all are answered")
    return table.early()


def played(story: Callable[[Scene], object], ahead: dict[str, float]) -> None:
    play(story, nodes=("n1", "n2"), ahead=ahead)  # type: ignore[arg-type]


@pytest.mark.case(330)
@pytest.mark.parametrize("wrong", WRONG_S)
@pytest.mark.parametrize("who", ["c1", "n1", "n2", "s1"])
def test_a_process_whose_clock_is_wrong_lets_no_deadline_pass_early_or_late(who: str, wrong: float) -> None:
    async def story(scene: Scene) -> None:
        early = await line(scene)
        assert len(early) == 2 * ROUNDS
        assert max(early.values()) <= EARLY_S and min(early.values()) >= -LATE_S, early

    played(story, {who: wrong})


@pytest.mark.case(330)
@pytest.mark.parametrize("wrong", WRONG_S)
def test_one_server_of_three_whose_clock_is_wrong_lets_no_deadline_pass_early_that_another_has_dated(wrong: float) -> None:
    async def story(scene: Scene) -> None:
        early = await line(scene, server_ahead=wrong)
        assert max(early.values(), default=0.0) <= EARLY_S, early

    played(story, {})


@pytest.mark.case(330)
@pytest.mark.parametrize("wrong", WRONG_S)
def test_a_timer_of_an_owner_whose_clock_is_wrong_comes_when_it_is_due(wrong: float) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        began = scene.world.loop.time()
        await scene.mesh.ask("a", do(["notify_after", {"seconds": 10, "event": "tick"}]))
        await scene.until(lambda: scene.history("timer", scene.world.subjects.due("a")), "the timer fires")
        (fired,) = scene.history("timer", scene.world.subjects.due("a"))
        assert began + 10 <= fired.at <= began + 10 + EARLY_S

    play(story, ahead={"n1": wrong})


@pytest.mark.case(330)
@pytest.mark.parametrize("wrong", WRONG_S)
@pytest.mark.parametrize("leads", ["mail", "timer"])
def test_a_timer_comes_when_it_is_due_whichever_stream_a_server_with_a_wrong_clock_leads(leads: StreamRole, wrong: float) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        scene.server.ahead = {scene.world.subjects.stream(leads): wrong}
        await asyncio.sleep(WINDOW_S)
        due = scene.world.subjects.due("a")
        for number in range(2):
            began = scene.world.loop.time()
            if number:
                await scene.mesh.set_timer("a", "t", "tick", after_s=10)
            else:
                await scene.mesh.ask("a", do(["notify_after", {"seconds": 10, "event": "tick"}]))
            await scene.until(lambda after=number: len(scene.history("timer", due)) > after, "the timer fires")  # type: ignore[misc]
            assert began + 10 <= scene.history("timer", due)[number].at <= began + 10 + EARLY_S

    play(story)


@pytest.mark.case(331)
@pytest.mark.parametrize("wrong", [-90.0, -3600.0])
def test_a_caller_whose_clock_is_wrong_sees_it_in_the_error(wrong: float) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        said = format_time(float(round(scene.server.wall() + wrong + GIVEN_S)))
        stored = await store(scene.mesh.transport, scene.world.subjects.inbox("a"), b"hello", headers={DEADLINE: said})
        await scene.until(lambda: str(stored.seq) in scene.results("a"), "it is answered")
        error = scene.results("a")[str(stored.seq)].error
        assert error is not None and error.code == "expired"
        assert error.details["deadline"] == said and said in error.message
        assert parse_time(error.details["server_time"]) == pytest.approx(EPOCH + scene.world.loop.time(), abs=EARLY_S)
        assert error.details["server_time"] in error.message

    play(story)


@pytest.mark.case(332)
def test_a_timeout_counts_from_when_the_mesh_stored_the_prompt_also_for_an_ask() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.tell("a", "gate:held held")
        transport, subjects = scene.mesh.transport, scene.world.subjects
        began = scene.world.loop.time()
        reply = await transport.request(subjects.ask("a"), b"hello", headers={TIMEOUT: "3"}, timeout=PATIENCE_S)
        assert b'"expired"' in reply.data and began + 3 <= scene.world.loop.time() <= began + 3 + EARLY_S
        reply = await transport.request(subjects.ask("a"), b"hello", headers={TIMEOUT: "soon"}, timeout=PATIENCE_S)
        assert b'"bad_request"' in reply.data and b"Mesh-Timeout" in reply.data
        event = await store(transport, subjects.notify("a"), b'"late"', headers={TIMEOUT: "3"})
        await asyncio.sleep(4)
        open_gate("held")
        await scene.until(lambda: scene.ledger("a").positions.get("notify", 0) >= event.seq, "the event is consumed")
        assert scene.seen("a").events == []

    play(story)
