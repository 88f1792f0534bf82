"""The server forgets where a late answer goes, unless the layout says how long it may take (case 663)."""

from __future__ import annotations

from pathlib import Path

import pytest

import agentmesh_client
from access_kit.long_waits import answer, ask_late, remembered
from access_kit.place import place, secured_mesh
from access_kit.raw import raw
from support import eventually, run

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.case(663)]
AGENT = "team-a.late"


@pytest.mark.parametrize("servers", [1, 3])
def test_an_answer_that_takes_longer_than_the_threshold_is_lost_and_ours_arrives(servers: int, tmp_path: Path) -> None:
    async def main() -> None:
        with place(servers) as ours, place(threshold="2s") as short:
            async with (
                secured_mesh(ours), secured_mesh(short),
                agentmesh_client.connect(ours.url("operator")) as one, agentmesh_client.connect(short.url("operator")) as other,
                raw(ours.url("patient", 0)) as caller, raw(short.url("patient", 0)) as loser,
            ):  # fmt: skip
                for operator in (one, other):
                    await operator.start_agent(AGENT, kind="Recorder", timeout=60)
                for each in (caller, loser):
                    each.subscribe(f"_INBOX.{each.user}.>")
                    await each.flush()
                arrives = await ask_late(caller, AGENT, tmp_path / "ours")
                lost = await ask_late(loser, AGENT, tmp_path / "short")
                await eventually(lambda: remembered(short) == 0, 60, "the server forgets the requests")
                assert remembered(ours) >= 3
                for late in (arrives, lost):
                    late.gate.touch()
                for way, inbox in arrives.inboxes.items():
                    await eventually(lambda inbox=inbox: answer(caller, inbox), 30, f"the answer to {way}")
                assert [(answer(caller, arrives.inboxes[way]) or {}).get("text") for way in ("ask", "again", "address")] == [
                    "late"
                ] * 3

                # An address of the caller's own has no threshold. The others are lost, and taken up by the same id.
                await eventually(lambda: answer(loser, lost.inboxes["address"]), 30, "the answer to an address")
                again = loser.inbox()
                named = {"Nats-Msg-Id": f"{AGENT}.late"}
                loser.publish(f"mesh.ask.{AGENT}", f"gate:{lost.gate} late".encode(), named, reply=again)
                await eventually(lambda: answer(loser, again), 30, "the answer that is taken up")
                assert (answer(loser, again) or {})["text"] == "late"
                assert [answer(loser, lost.inboxes[way]) for way in ("ask", "again", "control")] == [None] * 3
                assert (await other.status(AGENT, content=True, timeout=60)).agent_state["prompts"] == ["late"]
            assert not ours.violations()

    run(main(), timeout=110)
