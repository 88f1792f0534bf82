"""What turns spend, and what ends those that spend too much."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh import wire
from agentmesh.agent import agents_in
from agentmesh.edge.read import read_all
from agentmesh.edge.registry import decode_spec
from agentmesh.errors import BadRequest, BudgetExceeded, TurnError
from agentmesh.subjects import Subjects, spec_key
from agentmesh.wire import Outcome
from agentmesh_client.cli import exits
from client.test_cli import Shell
from fakes.messages import Answer, Call, FakeMessages, Item, Tool
from fakes.responses import Reply, ResponsesServer, say, shell
from live import claude_agents, codexes, spenders
from live.mesh import PATIENCE_S, LocalMesh, local_mesh, process_mesh
from node.backends.claude_desk import childless, pointed_at
from node.backends.codex import KEY, KEY_NAME, options
from support import Server, eventually, run

LONG_S = 110
SERVES = agents_in(vars(spenders))
EACH = 15
"""Tokens of one of the fake's answers."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMessages]:
    with FakeMessages() as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
        monkeypatch.setenv("MESH_PRICES", json.dumps({"fake-model": {"input": 1000, "output": 2000}}))
        yield server


@pytest.fixture
def claude(fake: FakeMessages, monkeypatch: pytest.MonkeyPatch) -> FakeMessages:
    """The same for Claude Code."""
    pointed_at(fake, monkeypatch)
    return fake


async def stored(mesh: LocalMesh, agent: str) -> Outcome:
    """The agent's one outcome: a caller may have it before it is stored."""

    async def is_there() -> bool:
        return bool(await mesh.results(agent))

    await eventually(is_there, PATIENCE_S, f"an outcome of {agent}")
    (outcome,) = await mesh.results(agent)
    return outcome


def endless(call: Call) -> Item:
    """Digs on and on."""
    return Answer(tools=(Tool("dig", {"number": call.answers}),))


def noted(call: Call) -> bool:
    return "[budget]" in json.dumps(call.messages[-1])


def test_at_four_fifths_the_model_is_told_and_at_the_whole_the_turn_ends(
    server: Server, subjects: Subjects, fake: FakeMessages
) -> None:
    fake.play(endless)

    async def main() -> None:
        async with local_mesh(server, subjects, serves=SERVES) as mesh:
            await mesh.client.start_agent("boss", kind="Spender")
            with pytest.raises(BudgetExceeded) as caught:
                await mesh.client.ask("boss", "dig", timeout=PATIENCE_S, budget={"tokens": 100})
            assert caught.value.details["spent"]["tokens"] == 7 * EACH
            assert caught.value.details["reached"] == ["tokens"]
            assert [noted(call) for call in fake.calls] == [False] * 6 + [True]
            outcome = await stored(mesh, "boss")
            assert outcome.usage is not None
            assert (outcome.usage["input_tokens"], outcome.usage["output_tokens"], outcome.usage["tool_calls"]) == (70, 35, 7)
            assert outcome.usage["usd"] == pytest.approx(0.07 + 0.07)
            status = await mesh.client.status("boss")
            assert status.usage["input_tokens"] == 70
            assert status.usage["usd"] == pytest.approx(0.14)

    run(main(), LONG_S)


@pytest.mark.parametrize(
    ("budget", "calls"), [({"usd": 0.055}, 3), ({"tool_calls": 2}, 3), ({"tokens": 0}, 0), ({"tokens": 10**9, "usd": 0.03}, 2)]
)
def test_each_bound_ends_a_turn(
    budget: dict[str, float], calls: int, server: Server, subjects: Subjects, fake: FakeMessages
) -> None:
    fake.play(endless)

    async def main() -> None:
        async with local_mesh(server, subjects, serves=SERVES) as mesh:
            await mesh.client.start_agent("boss", kind="Spender", budget=budget)
            with pytest.raises(BudgetExceeded):
                await mesh.client.ask("boss", "dig", timeout=PATIENCE_S)
            assert len(fake.calls) == calls

    run(main(), LONG_S)


def test_time_that_is_over_ends_a_turn(server: Server, subjects: Subjects, fake: FakeMessages) -> None:
    fake.play(lambda call: Answer(text="slow " * 500, delay_s=0.2))

    async def main() -> None:
        async with local_mesh(server, subjects, serves=SERVES) as mesh:
            await mesh.client.start_agent("boss", kind="Spender")
            with pytest.raises(BudgetExceeded) as caught:
                await mesh.client.ask("boss", "dig", timeout=PATIENCE_S, budget={"wall_s": 1.0})
            assert caught.value.details["reached"] == ["wall_s"]

    run(main(), LONG_S)


@pytest.mark.parametrize("by", ["interrupt", "watchdog"])
def test_a_turn_that_is_killed_has_spent_what_it_has_spent(
    by: str, server: Server, subjects: Subjects, fake: FakeMessages
) -> None:
    fake.play(lambda call: endless(call) if call.answers == 0 else Answer(text="slow " * 500, delay_s=0.2))

    async def main() -> None:
        async with local_mesh(server, subjects, serves=SERVES) as mesh:
            await mesh.client.start_agent("boss", kind="Spender", watchdog_s=4.0 if by == "watchdog" else 600.0)
            asked = asyncio.create_task(mesh.client.ask("boss", "dig", timeout=PATIENCE_S))
            await eventually(lambda: len(fake.calls) == 2, PATIENCE_S, "the second call of the model")
            if by == "interrupt":
                assert await mesh.client.interrupt("boss")
            with pytest.raises(TurnError) as caught:
                await asked
            assert caught.value.code == ("interrupted" if by == "interrupt" else "timeout")
            outcome = await stored(mesh, "boss")
            assert outcome.usage is not None
            assert outcome.usage["input_tokens"] + outcome.usage["output_tokens"] >= EACH
            assert outcome.usage["usd"] > 0
            total = (await mesh.client.status("boss")).usage
            assert total["usd"] == outcome.usage["usd"], "it counts for the agent"

    run(main(), LONG_S)


def test_an_answer_within_the_budget_is_an_answer(server: Server, subjects: Subjects, fake: FakeMessages) -> None:
    fake.play(["done"])

    async def main() -> None:
        async with local_mesh(server, subjects, serves=SERVES) as mesh:
            await mesh.client.start_agent("boss", kind="Spender", budget={"tokens": 1000})
            response = await mesh.client.ask("boss", "dig", timeout=PATIENCE_S, budget={"tokens": 5})
            assert response.text == "done", "what is paid for is not thrown away"

    run(main(), LONG_S)


def test_a_request_that_is_tried_again_has_what_is_left(server: Server, subjects: Subjects, fake: FakeMessages) -> None:
    fake.play(endless)

    async def main() -> None:
        async with local_mesh(server, subjects, serves=SERVES) as mesh:
            await mesh.client.start_agent("boss", kind="Spender", options={"retry": True})
            with pytest.raises(BudgetExceeded):
                await mesh.client.ask("boss", "dig", timeout=PATIENCE_S, budget={"tokens": 40})
            assert len(fake.calls) == 3

    run(main(), LONG_S)


# --- those that are asked -----------------------------------------------------------------------------------------------
def asking(costly: int) -> Any:
    """The boss asks the helper, whose answer takes so many tokens, and then digs for ever."""

    def script(call: Call) -> Item:
        if call.prompt == "help":
            return Answer(text="helped", input_tokens=costly, output_tokens=0)
        if call.answers == 0:
            return Answer(tools=(Tool("ask_helper", {"prompt": "help"}),))
        return endless(call)

    return script


async def both(mesh: LocalMesh, **boss: Any) -> None:
    await mesh.client.start_agent("helper", kind="Helper")
    await mesh.client.start_agent("boss", kind="Spender", **boss)


def test_what_a_delegate_spends_counts_for_who_asked(server: Server, subjects: Subjects, fake: FakeMessages) -> None:
    fake.play(asking(1000))

    async def main() -> None:
        async with local_mesh(server, subjects, serves=SERVES) as mesh:
            await both(mesh)
            with pytest.raises(BudgetExceeded) as caught:
                await mesh.client.ask("boss", "go", timeout=PATIENCE_S, budget={"tokens": 1010})
            assert caught.value.details["spent"]["tokens"] == 1000 + EACH
            assert len(fake.calls) == 2
            outcome = await stored(mesh, "boss")
            assert outcome.usage is not None
            assert outcome.usage["delegated"] == {"tokens": 1000, "usd": 1.0, "tool_calls": 0}
            letters = await read_all(mesh.transport, subjects.stream("mail"), subjects.lane("peer-inbox", "helper"))
            assert json.loads(letters[0].headers[wire.BUDGET]) == {"tokens": 1010 - EACH}
            assert (await mesh.client.status("boss")).usage["delegated"]["tokens"] == 1000
            assert (await mesh.client.status("helper")).usage["input_tokens"] == 1000

    run(main(), LONG_S)


def test_a_delegate_may_spend_what_is_left(server: Server, subjects: Subjects, fake: FakeMessages) -> None:
    def script(call: Call) -> Item:
        if call.prompt == "help":
            return endless(call)
        return Answer(tools=(Tool("ask_helper", {"prompt": "help"}),))

    fake.play(script)

    async def main() -> None:
        async with local_mesh(server, subjects, serves=SERVES) as mesh:
            await both(mesh)
            with pytest.raises(BudgetExceeded):
                await mesh.client.ask("boss", "go", timeout=PATIENCE_S, budget={"tokens": 60})
            helped = await stored(mesh, "helper")
            assert helped.error is not None
            assert (helped.error.code, helped.error.details["budget"]) == ("budget_exceeded", {"tokens": 45.0})
            assert len(fake.calls) == 4, "one of the boss, and three of the helper"

    run(main(), LONG_S)


def test_what_was_told_with_a_tag_counts_for_the_agent_and_bears_what_is_left(
    server: Server, subjects: Subjects, fake: FakeMessages
) -> None:
    fake.play(lambda call: "yes")

    async def main() -> None:
        async with local_mesh(server, subjects, serves=SERVES) as mesh:
            await both(mesh, options={"tell": "helper"})
            await mesh.client.ask("boss", "go", timeout=PATIENCE_S, budget={"tokens": 100})

            async def counted() -> bool:
                usage = (await mesh.client.status("boss")).usage
                return bool(usage.get("delegated", {}).get("tokens") == EACH)

            await eventually(counted, PATIENCE_S, "the helper's tokens")
            letters = await read_all(mesh.transport, subjects.stream("mail"), subjects.lane("peer-inbox", "helper"))
            assert json.loads(letters[0].headers[wire.BUDGET]) == {"tokens": 100 - EACH}

    run(main(), LONG_S)


@pytest.mark.parametrize("budget", ["{", '{"euro": 1}', '{"tokens": -1}'])
def test_a_budget_that_cannot_be_read_is_refused(budget: str, server: Server, subjects: Subjects, fake: FakeMessages) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves=SERVES) as mesh:
            await mesh.client.start_agent("boss", kind="Spender")
            reply = await mesh.transport.request(subjects.ask("boss"), b"go", headers={wire.BUDGET: budget}, timeout=PATIENCE_S)
            assert json.loads(reply.data)["error"]["code"] == "bad_request"
            with pytest.raises(BadRequest):
                await mesh.client.ask("boss", "go", budget={"euro": 1})
            with pytest.raises(BadRequest):
                await mesh.client.start_agent("other", kind="Spender", budget={"tokens": "many"})
            assert not fake.calls

    run(main(), LONG_S)


# --- takeovers ----------------------------------------------------------------------------------------------------------
def test_a_takeover_forgets_nothing_that_was_spent(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    gate = tmp_path / "gate"

    def script(call: Call) -> Item:
        if call.prompt == "help":
            return Answer(text="helped", input_tokens=30, output_tokens=0)
        if call.answers == 0:
            return Answer(tools=(Tool("ask_helper", {"prompt": "help"}),))
        slow = call.answers == 3 and not gate.exists()
        return Answer(text="slow " * 500, delay_s=0.2) if slow else endless(call)

    fake.play(script)

    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path) as mesh:
            for own_id in ("n1", "n2"):
                await mesh.start("node", own_id, "--agents", str(Path(spenders.__file__)))
            await mesh.client.start_agent("helper", kind="Helper", timeout=PATIENCE_S)
            await mesh.client.start_agent("boss", kind="Spender", timeout=PATIENCE_S)
            budget = {"tokens": 30 + 6 * EACH}
            asked = asyncio.create_task(mesh.client.ask_outcome("boss", "go", timeout=PATIENCE_S, budget=budget))
            await asyncio.to_thread(fake.wait_for, 5, PATIENCE_S)
            gate.touch()
            await (await mesh.host_of("boss")).kill()
            outcome = await asked
            assert outcome.error is not None
            assert outcome.error.code == "budget_exceeded"
            assert outcome.error.details["spent"]["tokens"] == 30 + 6 * EACH
            assert outcome.usage is not None
            assert outcome.usage["delegated"]["tokens"] == 30
            # Three answers and the helper's before the kill, the one that was on its way, and it and two more again.
            assert len(fake.calls) == 3 + 1 + 1 + 3

    run(main(), LONG_S)


# --- codex --------------------------------------------------------------------------------------------------------------
def test_codex_is_told_and_ended_too(server: Server, subjects: Subjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)

    async def main(fake: ResponsesServer) -> None:
        settings: dict[str, Any] = {"serves": agents_in(vars(codexes)), "files": str(tmp_path)}
        async with local_mesh(server, subjects, **settings) as mesh:
            await mesh.client.start_agent("coder", kind="Coder", options={"codex": options(fake)})
            with pytest.raises(BudgetExceeded) as caught:
                await mesh.client.ask("coder", "go", timeout=PATIENCE_S, budget={"tokens": 140})
            assert caught.value.details["spent"]["tokens"] == 140
            told = [any("[budget]" in text for text in seen.texts("user")) for seen in fake.requests]
            assert not any(told[:8]), "four fifths are spent by the eighth answer"
            assert any(told[8:10])
            assert len(told) >= 10, "Codex asks on while the backend hears of the tenth answer: how often, the machine says"
            fake.script = [say("fine")]
            response = await mesh.client.ask("coder", "again", timeout=PATIENCE_S, budget={"tokens": 50})
            assert (response.text, response.usage) == (
                "fine", {"input_tokens": 9, "output_tokens": 3, "cache_read_input_tokens": 2, "model": "fake-model"},
            )  # fmt: skip

    with ResponsesServer(lambda body: Reply((shell("echo x"),))) as fake:
        run(main(fake), LONG_S)


# --- claude, and the command line ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("bound", [("tool_calls", 2, 4), ("usd", 0.0001, 2)])
def test_claude_is_ended_too(
    bound: tuple[str, float, int], server: Server, subjects: Subjects, tmp_path: Path, claude: FakeMessages
) -> None:
    name, amount, most = bound
    claude.play(lambda call: Answer(tools=(Tool("Bash", {"command": "echo dug"}),)))

    async def main() -> None:
        settings: dict[str, Any] = {"serves": agents_in(vars(claude_agents)), "files": str(tmp_path)}
        async with local_mesh(server, subjects, **settings) as mesh:
            await mesh.client.start_agent("coder", kind="Coder", timeout=PATIENCE_S)
            with pytest.raises(BudgetExceeded):
                await mesh.client.ask("coder", "dig", timeout=PATIENCE_S, budget={name: amount})
            assert 0 < len([call for call in claude.calls if call.body.get("tools")]) <= most
        await childless(tmp_path)

    run(main(), LONG_S)


def test_budgets_and_costs_on_the_command_line(server: Server, subjects: Subjects, fake: FakeMessages) -> None:
    fake.play(endless)

    async def main() -> None:
        async with local_mesh(server, subjects, serves=SERVES) as mesh:
            mesh_command = Shell(server, subjects)
            budget = '{"tool_calls": 5}'
            await mesh_command.run("start", "boss", "--kind", "Spender", "--budget", budget)
            spec = await mesh.registry.get(spec_key("boss"))
            assert spec is not None
            assert decode_spec(spec).budget == {"tool_calls": 5}
            outcome = await mesh_command.json("ask", "boss", "dig", "--budget-tokens", "20", expect=exits.FAILED)
            assert outcome["error"]["code"] == "budget_exceeded"
            assert outcome["usage"]["usd"] == pytest.approx(0.04)
            status = await mesh_command.json("status", "boss")
            assert status["usage"]["tool_calls"] == 2
            await mesh_command.run("start", "bad", "--kind", "Spender", "--budget", '{"euro": 1}', expect=exits.USAGE)

    run(main(), LONG_S)
