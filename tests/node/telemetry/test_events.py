"""The vocabulary of lifecycle facts: what the code tells, what the module lists and what the page says are the same."""

from __future__ import annotations

import ast
import logging
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import agentmesh
from agentmesh import agent as agent_module
from agentmesh.agent import HOOKS, agents_in
from agentmesh.callback_results import Codec
from agentmesh.records import NOTHING
from agentmesh.subjects import Subjects
from agentmesh.wire import format_time
from agentmesh_node.telemetry.events import CONTENT, FIELDS, KINDS, WITH_CONTENT, Events, Fact, Kind

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "agent.md").read_text()
TOLD = {"Emit", "emit", "_emit"}


def told() -> Iterator[tuple[str, str, frozenset[str] | None]]:
    """Each fact that the code tells: where, its kind, and its fields where they are written there."""
    for path in sorted([*(ROOT / "mesh").rglob("*.py"), *(ROOT / "node").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            kind = next((a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)), None)
            if name not in TOLD or kind is None:
                continue
            given = next((a for a in node.args if isinstance(a, ast.Dict)), None)
            keys = None if given is None else frozenset(str(k.value) for k in given.keys if isinstance(k, ast.Constant))
            yield f"{path.name}:{node.lineno}", kind, keys


def test_the_code_tells_what_the_vocabulary_lists() -> None:
    found = list(told())
    for where, kind, keys in found:
        assert kind in KINDS, where
        assert keys is None or keys == FIELDS[kind], where
    # `callback_blocked` is told through the runner's port.
    assert {kind for _, kind, _ in found} == KINDS
    assert set(typing.get_args(Kind.__value__)) == KINDS


def test_the_page_lists_the_same_facts() -> None:
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|[^|]+\|$", PAGE.partition("## What can be watched")[2].partition("\n## ")[0], re.M)
    listed = {kind: frozenset(re.findall(r"`(\w+)`", fields)) for kind, fields in rows}
    assert listed == FIELDS
    content = {name for _, fields in rows for name in re.findall(r"\*`(\w+)`\*", fields)}
    assert content == CONTENT


def test_the_page_lists_each_callback_and_attribute() -> None:
    callbacks = PAGE.partition("\n## Callbacks\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_]+)\(", callbacks, re.M)
    assert set(rows) == {"init_agent", "handle_response", *HOOKS, "migrate_state"}
    attributes = PAGE.partition("\n## Attributes of the class\n")[2]
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]*) \|", attributes, re.M))))
    assert named == {name for name, kind in agent_module.Agent.__annotations__.items() if "ClassVar" in str(kind)}


def test_the_agent_of_the_page_is_one() -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE, re.S)[0]
    namespace: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, "agent.md", "exec", dont_inherit=True), namespace)
    (writer,) = agents_in(namespace).values()
    assert Codec(writer).decode(msgspec.Raw(b'{"lines":["a"]}')).lines == ["a"]


def test_what_an_agents_file_needs_is_exported() -> None:
    wanted = {"Agent", "Init", "Idle", "Prompt", "Halt", "Defer", "Proceed", "Skip", "Answer", "Closed", "Undelivered", "Timer"}
    assert wanted | {"Event", "Response", "Restart", "agent_tool", "tool"} == set(agentmesh.__all__)
    assert all(hasattr(agentmesh, name) for name in agentmesh.__all__)
    assert (Path(agentmesh.__file__).parent / "py.typed").exists()


# --- the publisher ------------------------------------------------------------------------------------------------------
class Wire:
    """Takes posts, of all that a transport can do."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def post_all(self, messages: Iterable[tuple[str, bytes]], *, though_full: bool = False) -> None:
        self.sent += [(subject, msgspec.json.decode(data)) for subject, data in messages]


def events(wire: Wire, *, content: bool = False, handlers: Any = ()) -> Events:
    return Events(typing.cast("Any", wire), Subjects("mesh"), "n1", lambda: 0.0, content=content, handlers=handlers)


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_fact_on_the_wire(kind: Kind, content: bool) -> None:
    wire = Wire()
    fields = {name: {"any": "JSON ü"} for name in sorted(FIELDS[kind])}
    events(wire, content=content).emit("team.coder", kind, 3, fields)
    ((subject, body),) = wire.sent
    assert subject == f"mesh.event.team.coder.{kind}"
    common = {"v": 1, "agent": "team.coder", "kind": kind, "time": format_time(0.0), "node": "n1", "turn": 3}
    assert {name: body[name] for name in common} == common
    assert body.keys() - common.keys() == (FIELDS[kind] if content else FIELDS[kind] - CONTENT)


def test_a_state_that_does_not_exist_yet_is_left_out() -> None:
    wire = Wire()
    heard: list[Fact] = []
    facts = events(wire, content=True)
    facts.handle(heard.append, content=True)
    facts.emit("coder", "halted", 0, {"agent_state": NOTHING})
    facts.emit("coder", "halted", 0, {"agent_state": msgspec.Raw(b'{"a":1}')})
    assert ["agent_state" in body for _, body in wire.sent] == [False, True]
    assert [fact.fields for fact in heard] == [{}, {"agent_state": {"a": 1}}]
    assert "halted" in WITH_CONTENT


def test_handlers_neither_harm_one_another_nor_the_fact(caplog: pytest.LogCaptureFixture) -> None:
    wire = Wire()
    heard: list[Fact] = []

    def bad(fact: Fact) -> None:
        fact.fields.clear()
        remove()
        raise RuntimeError("a bad handler")

    facts = events(wire, handlers=(heard.append,))
    remove = facts.handle(bad)
    facts.handle(heard.append)
    with caplog.at_level(logging.CRITICAL, logger="agentmesh.node"):
        facts.emit("coder", "mailbox_queued", 1, {"depth": 2})
        facts.emit("coder", "mailbox_queued", 1, {"depth": 3})
    assert [fact.fields["depth"] for fact in heard] == [2, 2, 3, 3]
    assert [body["depth"] for _, body in wire.sent] == [2, 3]


def test_facts_are_gathered_and_sent_in_order_each_with_its_own_time() -> None:
    wire, clock = Wire(), iter((1.0, 2.0, 3.0))
    later: list[Callable[[], None]] = []
    transport = typing.cast("Any", wire)
    facts = Events(transport, Subjects("mesh"), "n1", lambda: next(clock), content=False, later=later.append)
    for depth in (1, 2):
        facts.emit("coder", "mailbox_queued", 1, {"depth": depth})
    assert (wire.sent, len(later)) == ([], 1)
    later.pop()()
    assert [(body["depth"], body["time"]) for _, body in wire.sent] == [(1, format_time(1.0)), (2, format_time(2.0))]
    facts.emit("coder", "mailbox_queued", 1, {"depth": 3})
    assert len(later) == 1
    facts.publish()  # as a node does that ends
    later.pop()()
    assert [body["depth"] for _, body in wire.sent] == [1, 2, 3]
