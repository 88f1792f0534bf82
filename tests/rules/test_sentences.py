"""Rules of docs/architecture.md that no other test shows, one by one."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from agentmesh import wire
from agentmesh.edge.blobs import BLOB
from agentmesh.edge.journal import Journal
from agentmesh.edge.publish import store
from agentmesh.edge.streams import ensure
from agentmesh.errors import Stopped
from agentmesh.records import Open, StartAgent, StopAgent
from agentmesh.subjects import applied_key
from agentmesh.wire import Outcome
from agentmesh_node.owner.effect_handlers import _hash
from agentmesh_node.supervisor import late_mail
from rules.scene import PATIENCE_S, Scene, do, open_gate, play, told
from rules.test_attacks import Deaf, HeldUp, leaderless
from sim.agents import Cell
from support import Faulty, Server, connected, record, replaced, run

DAY_S = 24 * 3600.0


# --- effects ------------------------------------------------------------------------------------------------------
def test_whoever_replaces_by_first_copies_it_to_applied() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a", "b")
        await scene.mesh.ask("a", do(["start_agent", {"name": "m", "kind": "Doll"}]))
        await scene.until(lambda: scene.kinds("m")[-1:] == ["rest"], "its life")
        by = scene.spec("m").by
        assert by is not None and by.sender == "a"
        await scene.mesh.ask("b", do(["stop_agent", {"name": "m"}]))
        await scene.until(lambda: scene.spec("m").by not in (None, by), "another's change")
        key = applied_key("m", _hash("a"))
        (kept,) = scene.history("registry", key)
        assert msgspec.json.decode(kept.data) == by.origin
        assert kept.headers["Nats-TTL"] == str(7 * 24 * 3600)
        written = scene.history("registry", "agents.m")
        assert kept.seq < next(m.seq for m in written if msgspec.json.decode(m.data)["by"]["sender"] == "b"), "first"

    play(story)


def test_an_effect_of_which_the_spec_shows_this_origin_or_a_newer_one_is_done() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a", "m")
        handlers = scene.effect_handlers("n1", "a")
        await handlers.perform("1.500.0", Open(StopAgent(name="m"), "n", 0.0))
        await scene.until(lambda: scene.spec("m").status == "stopped", "its end")
        for origin in ("1.499.7", "1.500.0"):
            await handlers.perform(origin, Open(StartAgent(name="m", kind="Doll"), "n", 0.0))
            assert scene.spec("m").status == "stopped"
        await handlers.perform("1.500.1", Open(StartAgent(name="m", kind="Doll"), "n", 0.0))
        await scene.until(lambda: scene.spec("m").status == "running", "its next life")

    play(story)


def test_a_stop_is_done_at_stopping_and_a_start_that_meets_stopping_waits_for_the_name() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a", "m")
        faults = leaderless(scene, "result")
        await scene.mesh.tell("m", "its outcome stays open")
        await scene.until(lambda: "turn" in scene.kinds("m"), "its turn")
        await scene.mesh.tell("a", do(["stop_agent", {"name": "m"}], ["start_agent", {"name": "m", "kind": "Doll"}]))
        await scene.until(lambda: scene.spec("m").status == "stopping", "the stop")
        life = scene.spec("m").incarnation
        await asyncio.sleep(5.0)
        assert (scene.spec("m").status, scene.spec("m").incarnation) == ("stopping", life)
        faults.leaderless.clear()
        await scene.until(lambda: scene.spec("m").status == "running", "the next life")
        assert scene.spec("m").incarnation != life
        await scene.until(lambda: scene.kinds("a")[-1] == "rest", "rest")
        assert scene.seen("a").events == []

    play(story)


def test_an_answer_to_a_life_that_has_ended_is_done() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("boss", "worker")
        life = scene.spec("boss").incarnation
        await scene.mesh.tell("boss", do(told("worker", "gate:w work", "job")))
        await scene.until(lambda: scene.lane("peer-inbox", "worker"), "the request")
        assert scene.lane("peer-inbox", "worker")[0].headers[wire.FROM_LIFE] == life
        await scene.mesh.stop("boss", timeout=PATIENCE_S)
        await scene.start("boss")
        open_gate("w")
        await scene.until(lambda: scene.kinds("worker")[-1] == "rest", "its rest: nothing is open")
        assert scene.lane("peer-notify", "boss") == []

    play(story)


def test_an_answer_names_the_life_that_asked() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("boss", "worker")
        await scene.mesh.ask("boss", do(told("worker", "work", "job")))
        await scene.until(lambda: scene.lane("peer-notify", "boss"), "the answer")
        assert scene.lane("peer-notify", "boss")[0].headers[wire.FOR] == scene.spec("boss").incarnation

    play(story)


def test_an_effect_taken_over_is_given_up_only_when_the_window_is_over_and_no_trace_is_found() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("boss", "busy")
        await scene.mesh.tell("busy", "gate:g first")
        await scene.until(lambda: not scene.owner("busy").idle, "its turn")
        for number in range(3):  # with the first, which is in its turn, the lane is full
            await store(scene.mesh.transport, scene.world.subjects.lane("peer-inbox", "busy"), b"stuffing %d" % number)
        await scene.mesh.ask("boss", do(told("busy", "too many")))
        at = scene.world.loop.time()
        first = scene.node_of("boss")
        scene.world.kill(first)  # the next owner cannot know whether it was sent
        await scene.until(lambda: scene.node_of("boss") != first, "the takeover")
        await scene.until(lambda: "gave_up" in scene.kinds("boss"), "the end of its patience", 300.0)
        assert scene.world.loop.time() - at >= 120.0, "a definite refusal counts only beyond the window"
        await scene.until(lambda: scene.seen("boss").events, "the news")
        assert scene.seen("boss").events[0]["code"] == "mailbox_full"
        open_gate("g")
        await scene.until(lambda: scene.kinds("busy")[-1] == "rest", "rest")
        assert "too many" not in scene.seen("busy").prompts

    play(story, nodes=("n1", "n2"), mailbox_limit=3)


def test_an_effect_of_a_record_over_six_days_old_comes_back_as_unknown() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("boss", "peer")
        ref = await scene.mesh.tell("boss", do(told("peer", "from last week")))
        faults = leaderless(scene, "mail", "result")
        await scene.until(lambda: "turn" in scene.kinds("boss"), "the turn whose effects stay open")
        scene.world.kill("n1")
        scene.server.ahead = dict.fromkeys(scene.server.streams, 6 * DAY_S + 60.0)  # so long was there no node
        faults.leaderless.clear()
        scene.world.restart("n1")
        await scene.until(lambda: ref in scene.results("boss"), "its outcome, which is never given up")
        await scene.until(lambda: scene.seen("boss").events, "the news")
        assert [event["code"] for event in scene.seen("boss").events] == ["unknown"]
        assert scene.lane("peer-inbox", "peer") == []

    play(story)


# --- the journal --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("code", [10164, 10158])
def test_10164_and_10158_are_no_verdict_and_tried_again(server: Server, subjects: Any, code: int) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            first = await journal.append("a", record("r1"), record_id="r1", expected=0)
            refusal = msgspec.json.encode({"error": {"code": 400, "err_code": code, "description": "wrong last sequence"}})
            t.inject(subjects.journal("a"), replaced(refusal), replaced(refusal))
            second = await journal.append("a", record("r2"), record_id="r2", expected=first)
            assert [found.id for _, found in (await journal.read("a")).records] == ["r1", "r2"]
            assert second == first + 1

    run(main(), 60)


def test_a_store_that_has_lost_records_is_noticed_at_once_also_by_an_agent_at_rest() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a", "b")
        await scene.until(lambda: scene.kinds("a")[-1] == scene.kinds("b")[-1] == "rest", "rest")
        stream = scene.server.streams[scene.world.subjects.stream("journal")]
        backup = stream.backup()
        await scene.mesh.ask("a", "what will be lost")
        await scene.until(lambda: scene.kinds("a")[-1] == "rest", "rest")
        written = len(scene.records("a"))
        scene.world.net.stop_server()
        stream.restore(backup)
        scene.world.net.start_server()
        resident = scene.world.nodes["n1"].catalog.agents["a"]
        await scene.until(lambda: resident.broken, "the alarm", 20.0)
        await asyncio.sleep(60.0)
        assert len(scene.records("a")) == written, "nothing is written"
        assert (await scene.mesh.ask("b", "hello", timeout=PATIENCE_S)).text == "hello", "who has lost nothing goes on"

    play(story)


def test_a_snapshot_beyond_the_payload_limit_goes_through_the_object_store_and_survives_a_takeover() -> None:
    async def story(scene: Scene) -> None:
        Cell.bulk = 300_000
        await scene.start("a", kind="Cell")
        await scene.mesh.ask("a", "add L1")  # its state is larger than a message now
        blobs = [m for m in scene.stored("journal") if BLOB in m.headers]
        assert blobs and all(len(m.data) < 100 for m in blobs)
        first = scene.node_of("a")
        scene.world.kill(first)
        await scene.until(lambda: scene.node_of("a") != first, "the takeover")
        Cell.bulk = 0  # the next turn takes the weight away again
        await scene.mesh.ask("a", "add L2", timeout=PATIENCE_S)
        assert (await scene.state("a"))["log"] == ["prompt|-|L1", "prompt|-|L2"]
        for number in range(3, 9):
            await scene.mesh.ask("a", f"add L{number}", timeout=PATIENCE_S)
        named = [m.headers[BLOB] for m in scene.stored("journal") if BLOB in m.headers]
        assert named == [], "a snapshot has dropped them"
        chunks = scene.server.streams[scene.world.subjects.blob_stream]
        await scene.until(lambda: not chunks.live(), "the end of their chunks")

    play(story, nodes=("n1", "n2"), max_payload=200_000, snapshot_records=4)


# --- the end ------------------------------------------------------------------------------------------------------
def test_a_tombstone_keeps_lane_positions_and_the_next_life_begins_with_a_snapshot_that_contains_them() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("boss", "a")
        await scene.mesh.ask("a", "one")
        await scene.mesh.ask("boss", do(told("a", "two")))
        await scene.until(lambda: len(scene.seen("a").prompts) == 2, "both")
        positions, origins = scene.ledger("a").positions, scene.ledger("a").origins
        await scene.mesh.stop("a", timeout=PATIENCE_S)
        tombstone = scene.records("a")[-1]
        assert tombstone.kind == "tombstone" and tombstone.snapshot is not None
        assert (tombstone.snapshot.positions, tombstone.snapshot.origins) == (positions, origins)
        await scene.start("a")
        first = next(record for record in scene.records("a") if record.incarnation == scene.spec("a").incarnation)
        assert first.kind == "activated" and first.snapshot is not None
        assert (first.snapshot.positions, first.snapshot.origins) == (positions, origins)
        stored = scene.history("journal", scene.world.subjects.journal("a"))
        headers = {m.seq: m.headers for m in stored}
        rolled = [seq for seq, record in zip(headers, scene.records("a"), strict=True) if record in (tombstone, first)]
        assert [headers[seq].get("Nats-Rollup") for seq in rolled] == ["sub", "sub"]
        assert "Nats-TTL" in headers[rolled[0]]

    play(story)


def test_a_waiting_sender_asks_at_once_for_the_sweep_of_what_slipped_in_behind_the_end() -> None:
    async def story(scene: Scene) -> None:
        assert late_mail.PERIOD_S == 60.0
        await scene.start("a")
        await scene.mesh.ask("a", "hello")
        life = scene.spec("a").incarnation
        await scene.mesh.stop("a", timeout=PATIENCE_S)
        # The news of its end has not been here yet when the next prompt leaves.
        scene.mesh._specs.lives["a"] = life
        asked_at = scene.world.loop.time()
        with pytest.raises(Stopped):
            await scene.mesh.ask("a", "too late", timeout=PATIENCE_S)
        assert scene.world.loop.time() - asked_at < 5.0, "the leader's round takes a minute"
        # The caller is told before the outcome is stored: that is on its way still.
        await scene.until(lambda: len(scene.results("a")) == 2, "the stored outcome", 5.0)
        assert [outcome.error.code for outcome in scene.results("a").values() if outcome.error] == ["stopped"]

    play(story)


def test_a_sender_that_waits_when_the_spec_turns_to_stopped_asks_for_the_sweep_too() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        life = scene.spec("a").incarnation
        seen: list[str] = []
        scene.world.net.trace = lambda who, subject, body: seen.append(body) if '"sweep"' in body else None
        ask = scene.mesh._asks.open("a")
        ask.life = life
        ask.ref = "999"  # as if it were stored behind the last sweep: that finds nothing to answer
        await scene.mesh.stop("a", timeout=PATIENCE_S)
        await scene.until(lambda: seen, "the request for a sweep", 5.0)
        await scene.mesh._asks.end(ask)

    play(story)


def test_mail_that_names_no_life_is_swept_if_it_was_stored_before_the_spec_became_stopped_and_else_left_to_the_next() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.stop("a", wait=False)
        await scene.until(lambda: scene.spec("a").status == "stopping", "the wish")
        faults = leaderless(scene, "registry")
        await scene.until(lambda: scene.kinds("a")[-1] == "tombstone", "the last sweep")
        inbox = scene.world.subjects.inbox("a")
        before = await store(scene.mesh.transport, inbox, b"behind the sweep")
        faults.leaderless.clear()
        await scene.until(lambda: scene.spec("a").status == "stopped", "the end")
        after = await store(scene.mesh.transport, inbox, b"for any life")
        await scene.until(lambda: str(before.seq) in scene.results("a"), "the leader's round", 200.0)
        error = scene.results("a")[str(before.seq)].error
        assert error is not None and error.code == "stopped"
        await scene.start("a")
        await scene.until(lambda: str(after.seq) in scene.results("a"), "the next life's turn")
        assert scene.results("a")[str(after.seq)].text == "for any life"
        assert scene.kinds("a").count("swept") == 1

    play(story)


def test_mail_for_another_life_is_answered_stopped() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        life = scene.spec("a").incarnation
        await scene.mesh.stop("a", timeout=PATIENCE_S)
        await scene.start("a")
        headers = {wire.FOR: life}
        sent = await store(scene.mesh.transport, scene.world.subjects.inbox("a"), b"for the first one", headers=headers)
        await scene.until(lambda: str(sent.seq) in scene.results("a"), "its outcome")
        error = scene.results("a")[str(sent.seq)].error
        assert error is not None and error.code == "stopped"
        assert scene.seen("a").prompts == []

    play(story)


# --- mail ---------------------------------------------------------------------------------------------------------
def test_consumed_mail_younger_than_the_window_is_purged_only_when_its_lane_is_half_full() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        for number in range(5):
            await scene.mesh.ask("a", f"p{number}")
        await asyncio.sleep(60.0)
        assert len(scene.lane("inbox", "a")) == 5, "a server that restarts must still know their ids"
        for number in range(5, 8):
            await scene.mesh.ask("a", f"p{number}")
        await scene.until(lambda: len(scene.lane("inbox", "a")) < 5, "the purge")
        assert scene.ledger("a").seen, "and then the agent's state keeps the ids"

    play(story, mailbox_limit=16)


def test_mail_older_than_the_window_is_purged_lazily_and_nothing_is_remembered() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        for number in range(5):
            await scene.mesh.ask("a", f"p{number}")
        await scene.until(lambda: not scene.lane("inbox", "a"), "the purge", 600.0)
        assert scene.world.loop.time() > 120.0
        assert scene.ledger("a").seen == {}

    play(story, passivate_s=1000.0)


def test_an_agent_does_not_fall_asleep_with_a_lane_that_refuses_everybody() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.tell("a", "gate:g first")
        for number in range(3):
            await scene.mesh.tell("a", f"p{number}")
        assert len(scene.lane("inbox", "a")) == 4  # full
        open_gate("g")
        residents = scene.world.nodes["n1"].catalog.agents
        await scene.until(lambda: residents["a"].owner is None, "its sleep")
        assert len(scene.lane("inbox", "a")) < 4
        assert (await scene.mesh.ask("a", "more")).text == "more"

    play(story, mailbox_limit=4, passivate_s=1.5)


def test_an_agent_does_not_come_to_rest_with_a_lane_that_refuses_everybody() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.tell("a", "gate:g first")
        for number in range(3):
            await scene.mesh.tell("a", f"p{number}")
        scene.world.net.habits = HeldUp(scene, "$JS.API.STREAM.PURGE.MESH_MAIL", 30.0, 1)
        open_gate("g")
        await scene.until(lambda: len(scene.seen("a").prompts) == 4, "its turns")
        await asyncio.sleep(3.0)
        assert len(scene.lane("inbox", "a")) == 4
        assert scene.kinds("a")[-1] != "rest", "a new owner would leave it asleep, and its lane full"
        await scene.until(lambda: scene.kinds("a")[-1] == "rest", "rest")
        assert len(scene.lane("inbox", "a")) < 4

    play(story, mailbox_limit=4)


def test_mail_that_the_plain_subscription_missed_is_found_by_the_self_check() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a", "b")
        await scene.until(lambda: scene.kinds("b")[-1] == "rest", "rest")
        scene.server.faults = Deaf("mesh.live.")
        began = scene.world.loop.time()
        answers = [scene.mesh.ask(name, "hello", timeout=100.0) for name in ("a", "b")]
        assert [answer.text for answer in await asyncio.gather(*answers)] == ["hello", "hello"]
        assert 0 < scene.world.loop.time() - began < 90.0

    play(story)


def test_rest_says_the_positions_and_a_new_owner_leaves_the_agent_asleep() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", "one")
        await scene.until(lambda: scene.kinds("a")[-1] == "rest", "rest")
        assert scene.records("a")[-1].positions == scene.ledger("a").positions
        first = scene.node_of("a")
        scene.world.kill(first)
        await scene.until(lambda: scene.node_of("a") != first, "the takeover")
        await asyncio.sleep(5.0)
        assert scene.kinds("a")[-1] == "rest", "nobody has woken it"
        assert (await scene.mesh.ask("a", "two", timeout=PATIENCE_S)).text == "two"

    play(story, nodes=("n1", "n2"))


def test_a_repeated_id_whose_first_message_was_purged_gets_the_first_one_s_outcome_and_an_event_runs_once() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        first = await scene.mesh.ask("a", "once", idempotency_key="k1")
        await scene.mesh.notify("a", "event", idempotency_key="e1")
        for number in range(8):
            await scene.mesh.ask("a", f"p{number}")
            await scene.mesh.notify("a", f"e{number}")
        await scene.until(lambda: all(m.seq > 2 for lane in ("inbox", "notify") for m in scene.lane(lane, "a")), "the purges")
        scene.world.net.stop_server()
        scene.world.net.start_server()  # it knows the ids of what is stored, and no others
        await asyncio.sleep(2.0)
        again = await scene.mesh.ask("a", "once", idempotency_key="k1", timeout=PATIENCE_S)
        assert again.text == first.text and again.ref != first.ref
        await scene.mesh.notify("a", "event", idempotency_key="e1", timeout=PATIENCE_S)
        await scene.mesh.ask("a", "last", timeout=PATIENCE_S)
        await asyncio.sleep(2.0)
        state = await scene.state("a")
        assert state["prompts"].count("once") == 1 and state["events"].count("event") == 1

    play(story, mailbox_limit=8)


def test_an_id_that_is_used_again_long_after_the_window_is_a_new_message() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", "first use", idempotency_key="k1")
        for number in range(8):
            await scene.mesh.ask("a", f"p{number}")
        await scene.until(lambda: scene.ledger("a").seen, "the purge")
        await asyncio.sleep(400.0)
        assert (await scene.mesh.ask("a", "second use", idempotency_key="k1", timeout=PATIENCE_S)).text == "second use"

    play(story, mailbox_limit=8, passivate_s=1000.0)


def test_an_outcome_is_found_although_the_life_that_gave_it_has_ended() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        ref = (await scene.mesh.ask("a", "kept")).ref
        await scene.mesh.stop("a", timeout=PATIENCE_S)
        found = await scene.mesh.poll("a", ref)
        assert isinstance(found.outcome, Outcome) and found.outcome.text == "kept"

    play(story)
