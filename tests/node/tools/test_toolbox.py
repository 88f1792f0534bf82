"""Tools as an agent declares them, and as the node runs them."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest

from agentmesh.agent import Agent
from agentmesh.backend import Turn
from agentmesh.errors import BadRequest, InvalidAgent
from agentmesh.identity import Party
from agentmesh.steps import UnjournaledSteps
from agentmesh.tools import Done, FunctionTool, McpStdio, NotDone, ToolCall, ToolError, agent_tool, declared, tool
from agentmesh.wire import ErrorBody, Outcome
from agentmesh_node.tools import Call, Result, Toolbox
from agentmesh_node.tools.calls import MAX_RESULT, TimedOut, bounded
from support import run


def having(*tools: Any) -> Agent[Any]:
    """An agent with these tools."""
    made: Agent[Any] = type("Having", (Agent,), {"tools": tools})()
    return made


def turn(**steps: Any) -> Turn:
    return Turn("a", "1", 1, steps=Asking(**steps))


class Asking(UnjournaledSteps):
    """Steps whose asks are answered."""

    def __init__(self, outcome: Outcome | None = None) -> None:
        super().__init__(key="turn-7")
        self.asked: list[tuple[Any, ...]] = []
        self.outcome = outcome

    async def ask(
        self,
        wait: str,
        agent: str,
        prompt: str,
        *,
        timeout_s: float,
        metadata: dict[str, Any] | None = None,
        budget: dict[str, float] | None = None,
        wait_halted: bool = False,
    ) -> Outcome:
        self.asked.append((wait, agent, prompt, timeout_s, budget))
        assert self.outcome is not None
        return self.outcome


async def result(agent: Agent[Any], name: str, given: Any, within: Turn | None = None) -> Result:
    return await Toolbox(agent).run(Call("c1", name, given), within or turn())


# --- what a model is told ---------------------------------------------------------------------------------------------
class Size(Enum):
    SMALL = "small"
    LARGE = "large"


class Box(msgspec.Struct):
    width: int
    labels: list[str] = []


@tool(effect="pure", timeout_s=5)
async def pack(
    *,
    what: str,
    box: Box,
    call: ToolCall,
    size: Size = Size.SMALL,
    order: Literal["asc", "desc"] = "asc",
    count: Annotated[int, msgspec.Meta(ge=1)] = 1,
    tags: Sequence[str] = ("none",),
) -> str:
    """Pack something.

    It fits or it does not.

    Args:
        what: the thing
        count: how many of them

    Returns:
        the number of the parcel
    """
    return f"{what} {box.width} {size.value} {order} {count} {list(tags)} {call.key}"


def test_a_schema_says_what_signature_and_docstring_say() -> None:
    (item,) = declared(having(pack))
    assert not isinstance(item, McpStdio)
    spec = item.spec  # type: ignore[union-attr]
    assert spec.name == "pack"
    assert spec.description == "Pack something.\n\nIt fits or it does not.\n\nReturns: the number of the parcel"
    properties = spec.schema["properties"]
    assert spec.schema["type"] == "object"
    assert spec.schema["additionalProperties"] is False
    assert spec.schema["required"] == ["what", "box"]
    assert set(properties) == {"what", "box", "size", "order", "count", "tags"}, "the call is the mesh's, not the model's"
    assert properties["what"] == {"type": "string", "description": "the thing"}
    assert properties["count"] == {"type": "integer", "minimum": 1, "default": 1, "description": "how many of them"}
    assert properties["order"]["enum"] == ["asc", "desc"]
    assert spec.schema["$defs"]["Box"]["properties"]["width"] == {"type": "integer"}
    assert properties["box"] == {"$ref": "#/$defs/Box"}


def test_input_that_fits_becomes_arguments_and_the_call_is_added() -> None:
    found = run(result(having(pack), "pack", {"what": "pen", "box": {"width": 2}, "size": "large", "count": 3}))
    assert found == Result("c1", "pack", True, "pen 2 large asc 3 ['none'] turn-7/c1")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "missing required field `what`"),
        ({"what": 1, "box": {"width": 1}}, "Expected `str`, got `int` - at `$.what`"),
        ({"what": "x", "box": {"width": "1"}}, "at `$.box.width`"),
        ({"what": "x", "box": {"width": 1}, "count": 0}, ">= 1"),
        ({"what": "x", "box": {"width": 1}, "colour": "red"}, "unknown field `colour`"),
        ({"what": "x", "box": {"width": 1}, "call": {"id": "1"}}, "unknown field `call`"),
        (["what"], "Expected `object`"),
        (None, "Expected `object`"),
    ],
)
def test_input_that_does_not_fit_is_an_error_for_the_model(given: Any, said: str) -> None:
    found = run(result(having(pack), "pack", given))
    assert (found.ok, found.error) == (False, "bad_input")
    assert said in found.text


def test_a_default_is_not_shared_between_calls() -> None:
    @tool(effect="pure")
    def grow(items: list[int] = [1]) -> int:  # noqa: B006 - what is tested
        items.append(2)
        return len(items)

    box = Toolbox(having(grow))
    assert [run(box.run(Call("c", "grow", {}), turn())).text for _ in range(2)] == ["2", "2"]


def no_type(word) -> str:  # type: ignore[no-untyped-def]
    return str(word)


def many(*words: str) -> str:
    return " ".join(words)


def strange(thing: Callable[[int], int]) -> int:
    return thing(1)


def lost(thing: Nowhere) -> int:  # type: ignore[name-defined]  # noqa: F821
    return 1


@pytest.mark.parametrize("wrong", [no_type, many, strange, lost, "pack", 7, lambda: 1, pytest])
def test_what_cannot_be_a_tool_is_refused_by_name(wrong: Any) -> None:
    with pytest.raises(InvalidAgent):
        declared(having(wrong))


def test_one_tool_without_its_comma_is_refused_with_a_hint() -> None:
    forgetful: Agent[Any] = type("Forgetful", (Agent,), {"tools": pack})()
    with pytest.raises(InvalidAgent, match=r"comma: tools = \(it,\)"):
        declared(forgetful)


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidAgent, match="'pack'"):
        declared(having(pack, pack))


@pytest.mark.parametrize(
    "made",
    [
        lambda: tool(effect="twice"),  # type: ignore[call-overload]
        lambda: tool(effect="pure", reconcile=print),
        lambda: tool(timeout_s=0),
        lambda: tool("pure"),  # type: ignore[call-overload]
        lambda: agent_tool("no such name!"),
        lambda: agent_tool("ok", name="no such name!"),
        lambda: McpStdio(name="bad name", command="x"),
        lambda: McpStdio(name="ok", command="x", effects={"t": "sometimes"}),  # type: ignore[dict-item]
    ],
)
def test_declarations_that_make_no_sense_are_refused(made: Callable[[], Any]) -> None:
    with pytest.raises(InvalidAgent):
        made()


def test_a_bare_decorator_has_all_defaults() -> None:
    @tool
    def bare(text: str) -> str:
        return text

    class Holder:
        tools = (bare,)

    (found,) = declared(Holder())
    assert isinstance(found, FunctionTool)
    assert (found.spec.name, found.effect, bare("x")) == ("bare", "once", "x")


def test_a_method_is_a_tool_of_its_instance() -> None:
    class Counter(Agent[Any]):
        def __init__(self) -> None:
            self.count = 40

        @tool(effect="pure", name="count_up", description="Counts.")
        async def up(self, by: int) -> int:
            self.count += by
            return self.count

        tools = (up,)

    agent = Counter()
    found = run(result(agent, "count_up", {"by": 2}))
    assert (found.text, agent.count) == ("42", 42)
    assert run(agent.up(1)) == 43, "it can still be called"


# --- how tools run ----------------------------------------------------------------------------------------------------
async def lists() -> dict[str, Any]:
    return {"a": [1, 2]}


async def nothing() -> None:
    return None


async def unspeakable() -> object:
    return object()


async def fails_cleanly() -> str:
    raise ToolError("the shop is closed")


async def raises() -> str:
    raise KeyError("drawer")


def exits() -> str:
    raise SystemExit(3)


async def cancels() -> str:
    raise asyncio.CancelledError


class OutOfLine(BaseException):
    """What is no `Exception`, as some test and cancellation frameworks raise it."""


async def raises_out_of_line() -> str:
    raise OutOfLine("odd")


def raises_a_group_out_of_line() -> str:
    raise BaseExceptionGroup("several", [OutOfLine("odd")])


async def is_interrupted() -> str:
    raise KeyboardInterrupt


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def raises_without_words() -> str:
    raise Wordless


async def lists_a_file_that_is_no_utf8() -> str:
    return os.fsdecode(b"caf\xe9.txt")


async def raises_what_is_no_utf8() -> str:
    raise FileNotFoundError(os.fsdecode(b"caf\xe9.txt"))


async def is_not_all_there() -> Any:
    return 2**64, Unset()


class Unset(msgspec.Struct):
    """Fails when it is encoded."""

    value: int = msgspec.field(default=0)

    def __post_init__(self) -> None:
        del self.value


async def measures() -> dict[str, Any]:
    return {"mean": float("nan"), "unit": None, "all": [1.5, float("inf")]}


async def yields() -> AsyncIterator[int]:
    yield 1


async def cancels_its_own_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.Event().wait()


async def endless_text() -> str:
    return "x" * (MAX_RESULT + 5)


@pytest.mark.case(480)
@pytest.mark.parametrize(
    ("function", "ok", "text"),
    [
        (lists, True, '{"a":[1,2]}'),
        (nothing, True, ""),
        (unspeakable, False, "the tool's result is no JSON: Encoding objects of type object is unsupported"),
        (fails_cleanly, False, "the shop is closed"),
        (raises, False, "KeyError: 'drawer'"),
        (exits, False, "SystemExit: 3"),
        (cancels, False, "CancelledError"),
        (raises_out_of_line, False, "OutOfLine: odd"),
        (raises_a_group_out_of_line, False, "BaseExceptionGroup: several (1 sub-exception)"),
        (is_interrupted, False, "KeyboardInterrupt"),
        (raises_without_words, False, "Wordless"),
        (lists_a_file_that_is_no_utf8, True, "caf?.txt"),
        (raises_what_is_no_utf8, False, "FileNotFoundError: caf?.txt"),
        (is_not_all_there, False, "the tool's result is no JSON: Struct field 'value' is unset"),
        (yields, False, "the tool's result is no JSON: Encoding objects of type async_generator is unsupported"),
        (cancels_its_own_task, False, "CancelledError"),
        (
            measures,
            True,
            '{"mean":null,"unit":null,"all":[1.5,null]}\n'
            "[result['mean'] is NaN, result['all'][1] is infinite: JSON has no such number, so null stands there]",
        ),
        (endless_text, True, "x" * MAX_RESULT + "\n[cut: 5 more characters]"),
    ],
)
def test_whatever_a_tool_does_ends_as_a_result(function: Any, ok: bool, text: str, caplog: pytest.LogCaptureFixture) -> None:
    # What is logged of an error whose text is no UTF-8 cannot be sent from a worker of pytest to its main process.
    caplog.set_level(logging.CRITICAL, "agentmesh.node")
    found = run(result(having(function), function.__name__, {}))
    assert (found.ok, found.text) == (ok, text)


@pytest.mark.case(593)
@pytest.mark.parametrize(("function", "logged"), [(raises, ["KeyError('drawer')"]), (fails_cleanly, []), (lists, [])])
def test_the_log_shows_where_a_tool_raised(function: Any, logged: list[str], caplog: pytest.LogCaptureFixture) -> None:
    run(result(having(function), function.__name__, {}))
    lines = [record for record in caplog.records if record.getMessage() == "a tool raised"]
    assert [repr(record.exc_info[1]) for record in lines if record.exc_info] == logged
    assert [getattr(record, "tool", None) for record in lines] == ["raises"] * len(logged)


def test_a_plain_function_runs_in_a_thread() -> None:
    def where() -> str:
        return threading.current_thread().name

    found = run(result(having(where), "where", {}))
    assert found.ok
    assert found.text != threading.main_thread().name


def test_a_tool_that_nobody_has_is_an_error_that_names_those_there_are() -> None:
    found = run(result(having(pack, lists), "unpack", {}))
    assert (found.ok, found.error) == (False, "unknown_tool")
    assert "lists, pack" in found.text


def test_a_tool_that_hangs_is_cut_off_and_its_outcome_is_left_open_only_if_it_fires_once() -> None:
    ended: list[str] = []

    async def hang(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    @tool(effect="pure", timeout_s=0.05)
    async def look() -> None:
        await hang("look")

    @tool(effect="once", timeout_s=0.05)
    async def pay() -> None:
        await hang("pay")

    agent = having(look, pay)
    looked, paid = run(result(agent, "look", {})), run(result(agent, "pay", {}))
    assert (looked.ok, looked.error, paid.ok, paid.error) == (False, "timeout", False, "timeout")
    assert "unknown" not in looked.text
    assert "Whether it took effect is unknown" in paid.text
    assert ended == ["look", "pay"], "it was cancelled, not left running"


def test_a_plain_tool_that_hangs_is_left_behind_in_its_thread_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    free = threading.Event()

    @tool(effect="pure", timeout_s=0.05)
    def hang() -> None:
        free.wait(30)

    async def check() -> None:
        found = await result(having(hang), "hang", {})
        free.set()
        assert found.error == "timeout"

    run(check())
    assert "a plain tool is left behind in its thread" in caplog.text


@pytest.mark.processes
def test_plain_tools_that_hang_take_no_thread_from_others_and_keep_no_process() -> None:
    """More of them than the loop's executor has threads; the process ends while all of them still hang."""
    program = """
import asyncio, os, threading
from typing import Any
from agentmesh.agent import Agent
from agentmesh.backend import Turn
from agentmesh.tools import tool
from agentmesh_node.tools import Call, Toolbox

@tool(effect="pure", timeout_s=0.05)
def hang() -> None:
    threading.Event().wait()

@tool(effect="pure", timeout_s=30)
def quick() -> str:
    return "done"

class Having(Agent[Any]):
    tools = (hang, quick)

async def main() -> None:
    box, turn = Toolbox(Having()), Turn("a", "1", 1)
    await asyncio.gather(*(box.run(Call(str(n), "hang", {}), turn) for n in range((os.cpu_count() or 1) + 40)))
    print(await asyncio.to_thread(lambda: "free"), (await box.run(Call("q", "quick", {}), turn)).text)

asyncio.run(main())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (0, "free done\n"), ran.stderr


def test_work_that_does_not_heed_its_cancellation_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmesh_node.tools.calls.PATIENCE_S", 0.05)

    async def check() -> None:
        free = asyncio.Event()

        async def stubborn() -> None:
            while not free.is_set():
                try:
                    await free.wait()
                except asyncio.CancelledError:
                    continue

        with pytest.raises(TimedOut):
            await bounded(stubborn(), 0.05, "stubborn")
        free.set()

    run(check())


def test_cancelling_a_call_ends_the_tool() -> None:
    async def check() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        @tool(effect="pure")
        async def hang() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        task = asyncio.ensure_future(result(having(hang), "hang", {}))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    run(check())


# --- once -------------------------------------------------------------------------------------------------------------
def unknowing(key: str) -> None:
    return None


async def certain(key: str) -> Done:
    return Done(f"paid under {key}")


async def idle(key: str) -> NotDone:
    return NotDone()


def broken(key: str) -> Any:
    raise OSError("the bank is down")


@pytest.mark.parametrize(
    ("reconcile", "found"),
    [
        (None, "unknown_outcome"),
        (unknowing, "unknown_outcome"),
        (broken, "unknown_outcome"),
        (certain, "paid under turn-7/c1"),
        (idle, None),
    ],
)
def test_a_call_that_may_have_been_fired_is_asked_after(reconcile: Any, found: str | None) -> None:
    @tool(effect="once", reconcile=reconcile)
    async def pay() -> str:
        raise AssertionError("it must not be fired")

    known = run(Toolbox(having(pay)).reconcile(Call("c1", "pay", {}), turn()))
    assert (known and (known.error or known.text)) == found


def test_reconcile_may_be_a_method() -> None:
    class Payer(Agent[Any]):
        async def paid(self, key: str) -> Done:
            return Done([type(self).__name__, key])

        @tool(reconcile=paid)
        async def pay(self) -> str:
            return "paid"

        tools = (pay,)

    known = run(Toolbox(Payer()).reconcile(Call("c1", "pay", {}), turn()))
    assert known is not None
    assert known.text == '["Payer","turn-7/c1"]'


def test_effects_are_those_declared_and_once_unless_declared() -> None:
    async def plain() -> None:
        return None

    @tool(effect="idempotent")
    async def put() -> None:
        return None

    box = Toolbox(having(pack, put, plain, agent_tool("b")))
    assert [box.effect(n) for n in ("pack", "put", "plain", "ask_b", "none")] == [
        "pure", "idempotent", "once", "idempotent", "idempotent",
    ]  # fmt: skip


# --- other agents -----------------------------------------------------------------------------------------------------
def test_another_agent_is_asked_under_the_call_s_id() -> None:
    within = turn(outcome=Outcome(agent="team.b", ref="9", ok=True, text="forty-two"))
    agent = having(agent_tool("team.b", timeout_s=9, budget={"tokens": 100.0}))
    assert run(Toolbox(agent).specs())[0].name == "ask_team_b"
    found = run(result(agent, "ask_team_b", {"prompt": "what?"}, within))
    assert found == Result("c1", "ask_team_b", True, "forty-two")
    assert isinstance(within.steps, Asking)
    assert within.steps.asked == [("c1", "team.b", "what?", 9, {"tokens": 100.0})]


@pytest.mark.parametrize("code", ["cycle", "timeout", "not_found"])
def test_an_agent_that_does_not_answer_is_an_error_for_the_model(code: str) -> None:
    within = turn(outcome=Outcome(agent="b", ref="9", ok=False, error=ErrorBody(code=code, message="because")))
    found = run(result(having(agent_tool("b")), "ask_b", {"prompt": "what?"}, within))
    assert (found.ok, found.error, found.text) == (False, code, f"b did not answer: {code}: because")


class Count(msgspec.Struct):
    total: int


@pytest.mark.case(767)
def test_an_agents_answer_is_of_the_type_that_the_tool_declares() -> None:
    agent = having(agent_tool("b", answer_type=Count))
    assert "It answers in JSON, a Count;" in run(Toolbox(agent).specs())[0].description
    within = turn(outcome=Outcome(agent="b", ref="9", ok=True, text='{"total": 42, "of": "all"}'))
    assert run(result(agent, "ask_b", {"prompt": "what?"}, within)).text == '{"total":42}'
    within = turn(outcome=Outcome(agent="b", ref="9", ok=True, text="forty-two"))
    found = run(result(agent, "ask_b", {"prompt": "what?"}, within))
    assert (found.ok, found.error) == (False, "bad_answer")
    assert "b answered, but not with a Count: it is no JSON" in found.text and found.text.endswith("It said: forty-two")
    with pytest.raises(InvalidAgent, match="agent_tool: int cannot be the type of an answer"):
        agent_tool("b", answer_type=int)


@pytest.mark.parametrize("given", [{}, {"prompt": ""}, {"prompt": 3}, "what?"])
def test_an_agent_is_not_asked_nothing(given: Any) -> None:
    within = turn()
    found = run(result(having(agent_tool("b")), "ask_b", given, within))
    assert found.error == "bad_input"


def test_bad_input_names_its_place() -> None:
    (item,) = declared(having(pack))
    with pytest.raises(BadRequest, match="box"):
        item.signature.arguments({"what": "x", "box": 1})  # type: ignore[union-attr]


@pytest.mark.case(450)
def test_a_tool_ends_before_its_turn_and_the_model_is_told() -> None:
    class Short(Asking):
        def bounded_s(self, seconds: float) -> float:
            return min(seconds, 0.05)

    @tool(effect="pure", timeout_s=60)
    async def hang() -> None:
        await asyncio.Event().wait()

    steps = Short(outcome=Outcome(agent="boss", ref="1", ok=True, text="yes"))
    within = Turn("a", "1", 1, steps=steps)
    agent = having(hang, agent_tool("boss"))
    found = run(result(agent, "hang", {}, within))
    assert (found.error, "0.05 s" in found.text) == ("timeout", True)
    assert run(result(agent, "ask_boss", {"prompt": "q"}, within)).ok
    assert steps.asked[0][3] == 0.05


@pytest.mark.case(681)
def test_a_tool_knows_on_whose_behalf_it_runs() -> None:
    seen: list[ToolCall] = []

    @tool(effect="pure")
    async def look(call: ToolCall) -> None:
        """Look."""
        seen.append(call)

    shop = Party(kind="user", name="shop", account="CALLERS")
    for chain in ((shop, Party(kind="agent", name="boss")), ()):
        run(Toolbox(having(look)).run(Call("c1", "look", {}), msgspec.structs.replace(turn(), chain=chain)))
    assert [(call.chain[1:], call.caller) for call in seen] == [((Party(kind="agent", name="boss"),), shop), ((), None)]
