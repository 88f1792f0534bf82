"""What the store has lost is found, and what a replica does not have yet is not taken for lost."""

from __future__ import annotations

import pytest

from agentmesh.edge.failures import ApiError
from agentmesh.edge.manage import purge
from agentmesh.edge.read import read_all
from agentmesh.edge.results import store_outcome
from agentmesh.edge.transport import Message
from agentmesh.errors import Unavailable
from agentmesh.outcomes import AnsweredMessage
from agentmesh.subjects import StreamRole, spec_key
from agentmesh.wire import Outcome
from agentmesh_node import store_loss
from agentmesh_node.store_loss import PROOF_S, Acknowledged, StreamEnds, has_ended, lost_journals, report_older_mail
from node.simulated import SimulatedNode, simulate


# --- journals -------------------------------------------------------------------------------------------------------
def test_journals_that_end_before_what_was_committed_are_lost() -> None:
    async def story(node: SimulatedNode) -> None:
        whole, short = await node.record("whole"), await node.record("short")
        committed = {"whole": whole, "short": short + 5, "empty": 1}
        assert await lost_journals(node.transport, node.subjects, committed) == {"short", "empty"}

    simulate(story)


def test_a_journal_that_has_grown_since_is_not_lost() -> None:
    async def story(node: SimulatedNode) -> None:
        committed = await node.record("a")
        await node.record("a")
        assert await lost_journals(node.transport, node.subjects, {"a": committed}) == set()

    simulate(story)


def test_a_replica_that_lags_costs_another_look_and_no_agent() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.pass_time(1.0)
        seq = await node.record("a")
        node.faults.lag_s = 0.9  # the replica that is asked has not got the record
        began = node.loop.time()
        assert await lost_journals(node.transport, node.subjects, {"a": seq}) == set()
        assert PROOF_S <= node.loop.time() - began < 2 * PROOF_S, "the leader had it at the first look"

    simulate(story)


def test_a_loss_is_believed_only_when_it_was_seen_for_a_while() -> None:
    async def story(node: SimulatedNode) -> None:
        node.loop.call_later(1.5 * PROOF_S, lambda: node.world.process("others").spawn(node.record("late")))
        assert await lost_journals(node.transport, node.subjects, {"late": 1, "gone": 1}) == {"gone"}

    simulate(story)


def test_of_many_agents_one_page_after_another_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    assert store_loss.GROUP < 1024, "the server refuses more subjects in one request"

    async def story(node: SimulatedNode) -> None:
        names = [f"a{number}" for number in range(store_loss.GROUP + 1)]
        committed = {name: await node.record(name) for name in names}
        node.transport.requests.clear()
        assert await lost_journals(node.transport, node.subjects, committed) == set()
        assert len(node.transport.requests) == 2
        committed[names[-1]] += 1
        assert await lost_journals(node.transport, node.subjects, committed) == {names[-1]}

    simulate(story)


def test_without_an_answer_nothing_is_lost_and_nothing_is_known() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.stop_server()
        with pytest.raises(Unavailable):
            await lost_journals(node.transport, node.subjects, {"a": 1})

    simulate(story)


def test_nothing_is_asked_about_no_agents() -> None:
    async def story(node: SimulatedNode) -> None:
        node.transport.requests.clear()
        assert await lost_journals(node.transport, node.subjects, {}) == set()
        assert await node.services.ends.beyond({}) == set()
        assert await node.services.ends.beyond({"new": {}}) == set()
        assert node.transport.requests == []

    simulate(story)


# --- mail that has taken the place of other mail ----------------------------------------------------------------------
def test_an_agent_whose_answered_message_was_replaced_by_another_has_lost_mail() -> None:
    async def story(node: SimulatedNode) -> None:
        for name in ("whole", "moved", "purged"):
            await node.mail(name)
        stored = {m.subject: m for m in await read_all(node.others, node.subjects.stream("mail"), node.subjects.inbox("*"))}
        answered = {
            name: AnsweredMessage((m := stored[node.subjects.inbox(name)]).seq, m.time) for name in ("whole", "moved", "purged")
        }
        answered["moved"] = answered["moved"]._replace(stored=answered["moved"].stored - 3600)
        await purge(node.others, node.subjects.stream("mail"), node.subjects.inbox("purged"))
        known = {name: Acknowledged(1, {"inbox": one.seq}, one) for name, one in answered.items()}
        known["silent"] = Acknowledged(1, {"inbox": 1})
        ends = StreamEnds(node.transport, node.subjects)
        assert await ends.lost_mail(known) == {"moved"}
        reads = node.transport.requests.count(f"$JS.API.STREAM.MSG.GET.{node.subjects.stream('mail')}")
        assert await ends.lost_mail(known) == {"moved"}
        again = node.transport.requests.count(f"$JS.API.STREAM.MSG.GET.{node.subjects.stream('mail')}")
        assert (reads, again) == (3, 4), "what was found in its place is looked at again after a gap only"

    simulate(story)


def test_after_a_gap_the_mail_is_looked_at_again() -> None:
    async def story(node: SimulatedNode) -> None:
        seq = await node.mail("a")
        (message,) = await read_all(node.others, node.subjects.stream("mail"), node.subjects.inbox("a"))
        ends = StreamEnds(node.transport, node.subjects)
        known = {"a": Acknowledged(1, {"inbox": seq}, AnsweredMessage(seq, message.time))}
        assert await ends.lost_mail(known) == set()
        stream = node.server.streams[node.subjects.stream("mail")]
        node.net.stop_server()
        stream.restore((seq - 1, []))
        await node.pass_time(1.0)
        node.net.start_server()
        await node.until(lambda: node.transport.connected, "the connection")
        assert await ends.lost_mail(known) == {"a"}, "the stream ends before it"
        assert await node.mail("b") == seq
        assert await ends.lost_mail(known) == {"a"}, "another has its place"
        ends.close()

    simulate(story)


def test_mail_that_is_older_than_the_results_is_reported_once_it_is_sure() -> None:
    async def story(node: SimulatedNode) -> None:
        def reports() -> list[str]:
            return [line.getMessage() for line in node.logs if line.levelname == "CRITICAL"]

        await report_older_mail(node.transport, node.subjects)
        await store_outcome(node.others, node.subjects, Outcome(agent="a", ref="1", ok=True))
        await report_older_mail(node.transport, node.subjects)
        (said,) = reports()
        assert "request 1 is answered, the mail ends at 0" in said
        node.loop.call_later(PROOF_S / 2, lambda: node.world.process("others").spawn(node.mail("a")))
        await report_older_mail(node.transport, node.subjects)
        assert len(reports()) == 1, "the leader had lagged behind itself"
        node.faults.leaderless.add(node.subjects.stream("result"))
        await report_older_mail(node.transport, node.subjects)
        assert len(reports()) == 1

    simulate(story)


# --- streams of mail and timers -------------------------------------------------------------------------------------
def looks(node: SimulatedNode, role: StreamRole = "mail") -> int:
    """How often the end of a stream was asked for."""
    return node.transport.requests.count(f"$JS.API.STREAM.INFO.{node.subjects.stream(role)}")


def test_who_has_consumed_what_its_stream_never_gave_is_found() -> None:
    async def story(node: SimulatedNode) -> None:
        mail = await node.mail("a")
        due = await node.mail("a", lane="due")
        ends = StreamEnds(node.transport, node.subjects)
        beyond = await ends.beyond(
            {
                "fine": {"inbox": mail, "peer-answer": mail, "due": due},
                "mail": {"notify": mail + 1, "due": due},
                "timer": {"inbox": mail, "due": due + 1},
            }
        )
        assert beyond == {"mail", "timer"}

    simulate(story)


def test_a_loss_of_mail_is_believed_only_when_it_was_seen_three_times() -> None:
    async def story(node: SimulatedNode) -> None:
        ends = StreamEnds(node.transport, node.subjects)
        began = node.loop.time()
        assert await ends.beyond({"a": {"inbox": 1}}) == {"a"}
        assert looks(node) == 3
        assert node.loop.time() - began >= 2 * PROOF_S
        node.loop.call_later(1.5 * PROOF_S, lambda: node.world.process("others").spawn(node.mail("b")))
        assert await ends.beyond({"a": {"inbox": 1}}) == set(), "the leader had lagged behind itself"

    simulate(story)


def test_what_is_known_is_not_asked_again() -> None:
    async def story(node: SimulatedNode) -> None:
        seq = 0
        for _ in range(3):
            seq = await node.mail("a")
        ends = StreamEnds(node.transport, node.subjects)
        assert await ends.beyond({"a": {"inbox": seq}}) == set()
        assert await ends.beyond({"b": {"peer-inbox": seq - 1}, "c": {"notify": seq}}) == set()
        assert looks(node) == 1

    simulate(story)


def test_agents_that_are_taken_up_together_ask_once() -> None:
    async def story(node: SimulatedNode) -> None:
        seq = await node.mail("a")
        ends = StreamEnds(node.transport, node.subjects)
        others = node.world.process("n1")
        tasks = [others.spawn(ends.beyond({name: {"inbox": seq}})) for name in "abcdef"]
        assert [await task for task in tasks] == [set()] * 6
        assert looks(node) == 1

    simulate(story)


def copy(seq: str | None) -> Message:
    return Message("mesh.live.inbox.a", b"", {} if seq is None else {"Nats-Sequence": seq})


def test_mail_that_was_just_heard_of_spares_the_question() -> None:
    async def story(node: SimulatedNode) -> None:
        ends = StreamEnds(node.transport, node.subjects)
        ends.heard("inbox", copy("7"))
        ends.heard("inbox", copy("3"))
        assert await ends.beyond({"a": {"peer-inbox": 7}}) == set()
        assert looks(node) == 0
        ends.heard("due", copy("9"))
        assert await ends.beyond({"a": {"inbox": 8}}) == {"a"}, "timers are another stream"

    simulate(story)


@pytest.mark.parametrize("seq", [None, "", "x", "1.5"])
def test_what_did_not_come_from_the_server_says_nothing(seq: str | None) -> None:
    async def story(node: SimulatedNode) -> None:
        ends = StreamEnds(node.transport, node.subjects)
        ends.heard("inbox", copy(seq))
        ends.heard("control", copy("7"))
        assert await ends.beyond({"a": {"inbox": 1}}) == {"a"}

    simulate(story)


def test_after_a_reconnect_nothing_is_known_any_more() -> None:
    async def story(node: SimulatedNode) -> None:
        empty = node.stream("mail").backup()
        seq = await node.mail("a")
        ends = StreamEnds(node.transport, node.subjects)
        assert await ends.beyond({"a": {"inbox": seq}}) == set()
        await node.stop_server()
        node.stream("mail").restore(empty)  # it comes back with an older store
        await node.start_server()
        assert await ends.beyond({"a": {"inbox": seq}}) == {"a"}

        ends.heard("inbox", copy(str(seq)))
        ends.close()
        await node.stop_server()
        await node.start_server()
        assert await ends.beyond({"a": {"inbox": seq}}) == set(), "closed, it hears of no gap"

    simulate(story)


def test_a_stream_that_cannot_be_asked_is_no_loss() -> None:
    async def story(node: SimulatedNode) -> None:
        ends = StreamEnds(node.transport, node.subjects)
        node.faults.leaderless.add(node.subjects.stream("mail"))
        with pytest.raises(Unavailable):
            await ends.beyond({"a": {"inbox": 1}})
        del node.server.streams[node.subjects.stream("timer")]
        with pytest.raises(ApiError):
            await ends.beyond({"a": {"due": 1}})

    simulate(story)


# --- specs that are gone ------------------------------------------------------------------------------------------------
def test_an_agent_without_a_spec_has_ended_if_that_was_deleted_or_its_journal_says_so() -> None:
    async def story(node: SimulatedNode) -> None:
        registry, journals = node.registry, node.services.journal
        for name in ("deleted", "back", "gone"):
            await node.record(name)
        revision = await registry.create(spec_key("deleted"), b"{}")
        await registry.delete(spec_key("deleted"), revision)
        await registry.create(spec_key("back"), b"{}")
        names = ("deleted", "back", "gone", "never was")
        ended = {name: await has_ended(registry, journals, name, None) for name in names}
        assert ended == {"deleted": True, "back": False, "gone": False, "never was": True}
        assert await has_ended(registry, journals, "gone", "another life")

    simulate(story)
