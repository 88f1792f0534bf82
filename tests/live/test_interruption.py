"""Control requests while a callback runs, end to end (docs/semantics.md#control-requests-in-every-phase)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh.errors import BackendError, Cancelled, Interrupted, Stopped
from agentmesh.subjects import Subjects
from live.mesh import PATIENCE_S, LocalMesh
from live.obedient import Waiting
from live.test_between_agents import state_of
from live.test_callbacks import obedient_mesh, said
from support import Server, run

PROMPTS = {
    "pre_turn": "pre_turn",
    "handle_response": "handle_response",
    "handle_error": "fail:handle_error",
    "post_turn": "post_turn",
}


async def interrupt(mesh: LocalMesh, **fields: Any) -> dict[str, Any]:
    """The owner's whole reply."""
    body = msgspec.json.encode({"op": "interrupt", **fields})
    subject = mesh.subjects.control("coder")
    reply = await mesh.transport.request(subject, body, timeout=PATIENCE_S)
    found = msgspec.json.decode(reply.data)
    assert found.pop("v") == 1
    return dict(found)


@pytest.mark.case(440)
@pytest.mark.case(441)
@pytest.mark.case(442)
@pytest.mark.case(444)
@pytest.mark.parametrize("hook", PROMPTS)
def test_a_callback_that_waits_for_ever_is_interrupted(hook: str, server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with obedient_mesh(server, subjects) as mesh:
            log = tmp_path / "log"
            await mesh.client.start_agent("coder", kind="Waiting", options={"log": str(log)})
            asked = asyncio.create_task(mesh.client.ask("coder", PROMPTS[hook]))
            await said(log, hook)
            other = await mesh.client.tell("coder", "waits")
            assert await mesh.client.cancel("coder", other)
            with pytest.raises(Cancelled):
                (await mesh.client.poll("coder", other)).outcome.unwrap()  # type: ignore[union-attr]
            assert (await mesh.client.status("coder")).state == "processing"
            plain = {"plain": True} if hook == "post_turn" else {}
            assert await interrupt(mesh) == {"interrupted": True, "callback": hook, **plain}
            with pytest.raises(BackendError if hook == "handle_error" else Interrupted):
                await asked
            assert (await mesh.client.ask("coder", "fine", timeout=PATIENCE_S)).text == "fine"
            trail = (await state_of(mesh, "coder"))["trail"]
            behind = {"pre_turn": [], "post_turn": ["pre_turn", "handle_response"], "handle_error": ["pre_turn", "post_turn"]}
            expected = behind.get(hook, ["handle_error", "post_turn"])
            assert trail == [*expected, "pre_turn", "handle_response", "post_turn"]
            answers = [turn.answer for turn in await mesh.client.history("coder", content=True)]
            assert answers[:-1] == {"pre_turn": [], "handle_error": [None]}.get(hook, [hook])

    Waiting.released.clear()
    try:
        run(main(), 110)
    finally:
        Waiting.released.set()


@pytest.mark.case(440)
@pytest.mark.case(443)
def test_an_event_that_waits_for_ever_is_named_and_a_stop_ends_it(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with obedient_mesh(server, subjects) as mesh:
            log = tmp_path / "log"
            await mesh.client.start_agent("coder", kind="Waiting", options={"log": str(log)})
            await mesh.client.notify("coder", "handle_event")
            await said(log, "handle_event")
            assert await interrupt(mesh) == {"interrupted": False, "callback": "handle_event"}
            asked = asyncio.create_task(mesh.client.ask("coder", "never"))
            await mesh.client.stop("coder", timeout=PATIENCE_S)
            with pytest.raises(Stopped):
                await asked

    run(main(), 110)
