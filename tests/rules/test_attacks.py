"""The attacks that the design was put to on paper (tests/rules/__init__.py), each against the real shells."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from agentmesh import wire
from agentmesh.edge.manage import purge
from agentmesh.edge.registry import Entry, decode_spec
from agentmesh.edge.transport import Message
from agentmesh.records import Open, Resolve, SendMail, SetTimer, StartAgent, StopAgent
from agentmesh.subjects import spec_key
from agentmesh.wire import Outcome, PromptBody
from rules.scene import PATIENCE_S, Doll, Scene, do, open_gate, play, told
from sim.faults import Chances, ServerFaults
from sim.loop import current_process
from sim.net import Habits
from sim.server import Faults


class Deaf(Faults):
    """Copies of changes under these subjects are lost."""

    def __init__(self, *prefixes: str) -> None:
        self._prefixes = prefixes

    def copies(self, subject: str) -> int:
        return 0 if subject.startswith(self._prefixes) else 1


def leaderless(scene: Scene, *roles: Any) -> ServerFaults:
    """Streams without a leader, until they are taken out of the returned faults' `leaderless`."""
    faults = ServerFaults(scene.world.dice("faults"), Chances())
    faults.leaderless.update(scene.world.subjects.stream(role) for role in roles)
    scene.server.faults = faults
    return faults


class HeldUp(Habits):
    """Requests to some subjects arrive late."""

    def __init__(self, scene: Scene, prefix: str, seconds: float, times: int) -> None:
        super().__init__(scene.world.dice("held up"))
        self._prefix, self._seconds, self.times = prefix, seconds, times

    def delay(self, subject: str) -> float:
        if not subject.startswith(self._prefix) or not self.times:
            return 0.0
        self.times -= 1
        return self._seconds


def uninformed(scene: Scene, node: str) -> None:
    """Let a frozen node not hear that placements have gone: neither what waits for it nor what comes."""
    prefix = "mesh.registry.placements."
    scene.server.faults = Deaf(prefix)
    for handle in scene.world.processes[node].parked:
        if any(isinstance(part, Message) and part.subject.startswith(prefix) for part in handle._args or ()):
            handle.cancel()


# --- owners -------------------------------------------------------------------------------------------------------
def test_a_frozen_node_wakes_and_reads_the_journal_before_it_learns_that_its_placement_is_gone() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", "one")
        first = scene.node_of("a")
        residents = scene.world.nodes[first].catalog.agents
        await scene.until(lambda: residents["a"].owner is None, "its sleep")
        scene.world.processes[first].freeze()
        await scene.until(lambda: scene.node_of("a") != first, "the takeover")
        assert (await scene.mesh.ask("a", "two", timeout=PATIENCE_S)).text == "two"
        before = len(scene.records("a"))
        uninformed(scene, first)
        scene.world.processes[first].thaw()  # what wakes its agent is the mail: it reads the journal
        await scene.until(lambda: "a" not in residents, "its insight")
        assert all(record.node != first for record in scene.records("a")[before:])
        assert (await scene.mesh.ask("a", "three", timeout=PATIENCE_S)).text == "three"
        assert scene.seen("a").prompts == ["one", "two", "three"]

    play(story, nodes=("n1", "n2"), passivate_s=0.5)


def test_a_frozen_node_wakes_and_appends_before_it_learns_that_its_placement_is_gone() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        first = scene.node_of("a")
        asking = asyncio.ensure_future(scene.mesh.ask("a", "gate:g one", timeout=PATIENCE_S))
        await scene.until(lambda: scene.ledger("a").phase == "ready" and not scene.owner("a").idle, "the turn")
        scene.world.processes[first].freeze()
        await scene.until(lambda: scene.node_of("a") != first, "the takeover")
        open_gate("g")
        assert (await asking).node != first
        before = len(scene.records("a"))
        uninformed(scene, first)
        scene.world.processes[first].thaw()  # its turn ends too, and its record is refused
        await scene.until(lambda: "a" not in scene.world.nodes[first].catalog.agents, "its insight")
        assert all(record.node != first for record in scene.records("a")[before:])
        assert [record.kind for record in scene.records("a") if record.turn is not None] == ["turn"]

    play(story, nodes=("n1", "n2"))


def test_a_frozen_former_owner_whose_agent_fails_to_begin_marks_no_healthy_agent_as_stopping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(scene: Scene) -> None:
        async def refusing(self: Any, options: dict[str, Any]) -> Any:
            begun.append(current_process())
            if len(begun) == 1:
                await asyncio.sleep(1.0)
                raise RuntimeError("this node's disk is full")
            return await init(self, options)

        begun: list[Any] = []
        init = Doll.init_agent
        monkeypatch.setattr(Doll, "init_agent", refusing)
        await scene.mesh.start_agent("a", kind="Doll", wait=False)
        await scene.until(lambda: begun, "the first owner's begin")
        first = scene.node_of("a")
        scene.world.processes[first].freeze()
        await scene.until(lambda: scene.node_of("a") != first and scene.spec("a").status == "running", "the takeover")
        uninformed(scene, first)
        scene.world.processes[first].thaw()  # its `init_agent` fails now; of the takeover it has not heard
        await scene.until(lambda: "a" not in scene.world.nodes[first].catalog.agents, "its insight")
        await asyncio.sleep(5.0)
        assert scene.spec("a").status == "running"
        assert "stopped" not in scene.kinds("a")
        statuses = [decode_spec(Entry("a", m.data, m.seq)).status for m in scene.history("registry", spec_key("a"))]
        assert "stopping" not in statuses

    play(story, nodes=("n1", "n2"))


def test_an_agent_with_a_self_chained_prompt_and_empty_lanes_whose_node_dies() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", do(["then", {"decision": "prompt", "text": "gate:chain the chained one"}]))
        first = scene.node_of("a")
        assert all(scene.lane(lane, "a")[-1:] == [] or lane == "inbox" for lane in ("notify", "peer-inbox", "peer-notify", "due"))
        scene.world.kill(first)
        open_gate("chain")
        await scene.until(lambda: scene.node_of("a") != first, "the takeover")
        await scene.until(lambda: "rest" in scene.kinds("a")[-1:], "its work")
        assert scene.seen("a").prompts[1:] == ["the chained one"]

    play(story, nodes=("n1", "n2"))


def test_a_restarted_process_under_the_same_node_id() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        asking = asyncio.ensure_future(scene.mesh.ask("a", "gate:g one", timeout=PATIENCE_S))
        await scene.until(lambda: not scene.owner("a").idle, "the turn")
        old = scene.records("a")[-1]
        scene.world.kill("n1")
        scene.world.restart("n1")  # before its lease has lapsed: the placement and its generation stand
        open_gate("g")
        assert (await asking).text == "one"
        new = next(record for record in reversed(scene.records("a")) if record.kind == "activated")
        assert (new.node, new.generation) == (old.node, old.generation)
        assert new.boot != old.boot
        assert [record.kind for record in scene.records("a") if record.turn is not None] == ["turn"]

    play(story)


# --- the end of lives ---------------------------------------------------------------------------------------------
def test_stop_while_the_outcome_of_the_last_turn_is_still_open() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        faults = leaderless(scene, "result")
        ref = await scene.mesh.tell("a", "the last one")
        await scene.until(lambda: "turn" in scene.kinds("a"), "its turn")
        stopping = asyncio.ensure_future(scene.mesh.stop("a", timeout=PATIENCE_S))
        await scene.until(lambda: "stopped" in scene.kinds("a"), "the record of its end")
        await asyncio.sleep(3.0)
        assert "tombstone" not in scene.kinds("a"), "an open outcome is carried over the end"
        faults.leaderless.clear()
        await stopping
        assert scene.results("a")[ref].text == "the last one"
        assert scene.kinds("a")[-1] == "tombstone"

    play(story)


def test_a_purge_that_arrives_after_the_name_was_reused() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        for number in range(7):
            await scene.mesh.ask("a", f"p{number}")
        scene.world.net.habits = HeldUp(scene, "$JS.API.STREAM.PURGE.MESH_MAIL", 6.0, 10)
        await scene.mesh.ask("a", "p7")  # half of the lane is consumed
        await scene.until(lambda: scene.world.net.habits.times < 10, "the purge of what is consumed")  # type: ignore[attr-defined]
        await scene.mesh.stop("a", timeout=PATIENCE_S)
        await scene.start("a")
        asking = asyncio.ensure_future(scene.mesh.ask("a", "gate:g of the next life", timeout=PATIENCE_S))
        await scene.until(lambda: scene.lane("inbox", "a")[-1:] and not scene.owner("a").idle, "its turn")
        kept = scene.lane("inbox", "a")[-1].seq
        await scene.until(lambda: len(scene.lane("inbox", "a")) == 1, "the late purge")
        assert scene.lane("inbox", "a")[0].seq == kept
        scene.world.kill(scene.node_of("a"))  # the next owner finds the prompt, too
        scene.world.restart("n1")
        open_gate("g")
        assert (await asking).text == "of the next life"

    play(story, mailbox_limit=16)


def test_a_first_activation_that_arrives_after_the_name_was_reused() -> None:
    async def story(scene: Scene) -> None:
        scene.world.net.habits = HeldUp(scene, "mesh.journal.a", 8.0, 1)
        await scene.start("a")  # its first record is on its way for so long that it was sent again
        await scene.mesh.stop("a", timeout=PATIENCE_S)
        await scene.start("a")
        life, arrives = scene.spec("a").incarnation, scene.world.loop.time() + 10.0
        await scene.until(lambda: scene.world.loop.time() > arrives, "the late copy")
        assert (await scene.mesh.ask("a", "hello")).text == "hello"
        lives = [record.incarnation for record in scene.records("a")]
        assert lives == sorted(lives, key=lambda one: one == life), "nothing of the first life follows the second's begin"
        assert next(record.kind for record in scene.records("a") if record.incarnation == life) == "activated"

    play(story)


def test_start_and_stop_effects_repeated_after_their_targets_next_life_began() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", do(["start_agent", {"name": "m", "kind": "Doll"}]))
        await scene.until(lambda: scene.kinds("m")[-1:] == ["rest"], "its first life")
        await scene.mesh.ask("a", do(["stop_agent", {"name": "m"}]))
        await scene.until(lambda: scene.spec("m").status == "stopped", "the end of that")
        await scene.start("m")
        next_life = scene.spec("m")
        effects = [
            (f"{record.epoch}.{seq}.{index}", Open(effect, record.id, record.at))
            for seq, record in _sequenced(scene, "a")
            for index, effect in enumerate(record.effects)
            if isinstance(effect, StartAgent | StopAgent)
        ]
        assert [type(entry.effect) for _, entry in effects] == [StartAgent, StopAgent]
        for origin, entry in (*effects, *effects):
            await scene.effect_handlers("n1", "a").perform(origin, entry)
        assert scene.spec("m") == next_life, "it resurrects and kills nobody"

    play(story)


def _sequenced(scene: Scene, agent: str) -> list[tuple[int, Any]]:
    history = scene.server.streams[scene.world.subjects.stream("journal")].history
    seqs = [m.seq for m in history if m.subject == scene.world.subjects.journal(agent)]
    return list(zip(seqs, scene.records(agent), strict=True))


# --- effects ------------------------------------------------------------------------------------------------------
def test_an_older_long_timer_behind_a_newer_short_one() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", do(["notify_after", {"seconds": 30.0, "event": "long", "id": "t"}]))
        await scene.mesh.ask("a", do(["notify_after", {"seconds": 1.0, "event": "short", "id": "t"}]))
        older, newer = (
            (f"{record.epoch}.{seq}.{index}", Open(effect, record.id, record.at))
            for seq, record in _sequenced(scene, "a")
            for index, effect in enumerate(record.effects)
            if isinstance(effect, SetTimer)
        )
        await scene.effect_handlers("n1", "a").perform(*older)  # before the short one has fired: that one stays
        await scene.until(lambda: [e["event"] for e in scene.seen("a").events] == ["short"], "the short one")
        await scene.effect_handlers("n1", "a").perform(*older)  # behind it: it is set again, and fires for nobody
        await scene.effect_handlers("n1", "a").perform(*newer)
        await scene.until(lambda: len(scene.lane("due", "a")) >= 2, "the long one")
        await asyncio.sleep(5.0)
        assert [e["event"] for e in (await scene.state("a"))["events"]] == ["short"]

    play(story)


def test_a_snapshot_written_while_effects_are_open() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a", "b")
        faults = leaderless(scene, "result")
        refs = [await scene.mesh.tell("a", do(told("b", f"from turn {n}"))) for n in range(3)]
        await scene.until(lambda: scene.kinds("a").count("turn") == 3, "three turns")
        assert all(record.snapshot is not None for record in scene.records("a") if record.turn is not None and record is not None)
        assert len(scene.records("a")[-1].snapshot.effects) >= 2  # type: ignore[union-attr]
        scene.world.kill("n1")
        faults.leaderless.clear()
        scene.world.restart("n1")
        await scene.until(lambda: set(scene.results("a")) >= set(refs), "their outcomes")
        await scene.until(lambda: len(scene.results("b")) == 3, "what they told")
        await scene.until(lambda: scene.kinds("b")[-1] == "rest", "rest")
        assert [scene.results("a")[ref].ok for ref in refs] == [True] * 3
        assert (await scene.state("b"))["prompts"] == [f"from turn {n}" for n in range(3)]

    play(story, snapshot_records=1)


def test_a_full_mailbox_at_one_target_holds_up_no_others() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("boss", "busy", "free")
        await scene.mesh.tell("busy", "gate:g first")
        await scene.until(lambda: not scene.owner("busy").idle, "its turn")
        calls = [told("busy", f"b{number}", f"b{number}") for number in range(6)]
        await scene.mesh.ask("boss", do(*calls, told("free", "hello", "free")))
        await scene.until(lambda: [e["answer"] for e in scene.seen("boss").events] == ["free"], "the other's answer")
        assert len(scene.lane("peer-inbox", "busy")) == 3
        open_gate("g")
        await scene.until(lambda: len(scene.seen("boss").events) == 7, "the others")
        assert [e["answer"] for e in scene.seen("boss").events] == ["free", *(f"b{number}" for number in range(6))]

    play(story, mailbox_limit=3)


def test_the_same_nats_msg_id_sent_to_two_agents() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a", "b", "boss")
        # One key of a client, two agents: its id begins with the agent's name.
        one = await scene.mesh.ask("a", "to a", idempotency_key="same")
        two = await scene.mesh.ask("b", "to b", idempotency_key="same")
        assert (one.text, two.text) == ("to a", "to b")
        # An id of a node that somebody else has used before, for whatever reason: what is stored under it is looked at.
        origin, nonce = "1.999.0", "guessed"
        effect = SendMail(to="b", lane="peer-inbox", prompt=PromptBody(prompt="from boss"))
        headers = {wire.MSG_ID: f"b.boss.{origin}.{nonce}"}
        await scene.mesh.transport.request(scene.world.subjects.inbox("a"), b"a stranger's", headers=headers, timeout=5)
        await scene.effect_handlers("n1", "boss").perform(origin, Open(effect, nonce, 0.0))
        await scene.until(lambda: "from boss" in scene.seen("b").prompts, "what was told")
        await scene.effect_handlers("n1", "boss").perform(origin, Open(effect, nonce, 0.0))
        await asyncio.sleep(3.0)
        assert (await scene.state("b"))["prompts"] == ["to b", "from boss"]

    play(story)


def test_an_answer_that_arrives_while_earlier_events_are_deferred() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("boss", "worker")
        await scene.mesh.tell("boss", do(told("worker", "gate:w work", "job")))
        await scene.until(lambda: not scene.owner("worker").idle, "the worker's turn")
        asking = asyncio.ensure_future(scene.mesh.ask("boss", "gate:g hold", timeout=PATIENCE_S))
        await scene.until(lambda: not scene.owner("boss").idle, "the boss's turn")
        await scene.mesh.notify("boss", "e1")
        await scene.mesh.notify("boss", "e2")
        open_gate("w")
        await scene.until(lambda: scene.lane("peer-notify", "boss"), "the answer")
        await scene.mesh.notify("boss", "e3")
        first = scene.node_of("boss")
        scene.world.kill(first)  # in the middle of it
        open_gate("g")
        assert (await asking).text == "hold"
        await scene.until(lambda: scene.kinds("boss")[-1] == "rest", "rest")
        events = (await scene.state("boss"))["events"]
        assert [e["answer"] if isinstance(e, dict) else e for e in events] == ["e1", "e2", "job", "e3"]

    play(story, nodes=("n1", "n2"))


# --- mail ---------------------------------------------------------------------------------------------------------
def test_a_purge_of_mail_always_carries_a_sequence() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        seen: list[bytes] = []
        scene.world.net.trace = lambda who, subject, body: (
            seen.append(body.encode()) if subject.startswith("$JS.API.STREAM.PURGE.MESH_MAIL") else None
        )
        for number in range(30):
            await scene.mesh.ask("a", f"p{number}")
        await scene.until(lambda: seen, "a purge")
        assert all(msgspec.json.decode(body)["seq"] > 0 for body in seen)
        stream = scene.world.subjects.stream("mail")
        # The server takes 0 for "all of it".
        assert await purge(scene.mesh.transport, stream, scene.world.subjects.inbox("a"), below=1) == 0

    play(story, mailbox_limit=16)


def test_outcomes_are_stored_with_expected_sequence_0() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        ref = (await scene.mesh.ask("a", "one")).ref
        another = Resolve(outcome=Outcome(agent="a", ref=ref, ok=True, text="something else"))
        await scene.effect_handlers("n1", "a").perform("1.1.0", Open(another, "n", 0.0))
        assert scene.results("a")[ref].text == "one"

    play(story)
