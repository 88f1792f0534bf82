"""The states that agents may have, and how those of other versions are read. No server, no owner."""

from __future__ import annotations

import dataclasses
from typing import Any, TypedDict, cast

import msgspec
import pytest
from msgspec import Raw

from agentmesh.agent import Agent, Idle, state_type
from agentmesh.callback_results import Codec, check_class
from agentmesh.errors import InvalidAgent
from agentmesh.records import NOTHING
from agentmesh.turn.values import Input, Raised, Returned
from node.turns.test_callbacks import call, error_of, made, quiet

__all__ = ["quiet"]


class Struct(msgspec.Struct):
    lines: list[str] = []
    seen: Any = None


@dataclasses.dataclass
class Data:
    lines: list[str] = dataclasses.field(default_factory=list)
    seen: Any = None


class Typed(TypedDict):
    lines: list[str]
    seen: Any


STATES: dict[str, tuple[Any, Any]] = {
    "struct": (Struct, Struct),
    "dataclass": (Data, Data),
    "typed dict": (Typed, dict),
    "dict": (dict[str, Any], dict),
    "none given": (Any, dict),
}


def change(state: Any, **fields: Any) -> Any:
    for name, value in fields.items():
        if isinstance(state, dict):
            state[name] = value
        else:
            setattr(state, name, value)
    return state


@pytest.mark.case(21)
@pytest.mark.parametrize("name", STATES)
def test_each_type_of_state_is_encoded_and_a_bad_field_is_named(name: str) -> None:
    declared, real = STATES[name]
    given: list[Any] = []

    def handle(self: Any, event: Any, state: Any) -> Any:
        given.append(state)
        return Idle(change(state, lines=["a", event]))

    def fail(self: Any, event: Any, state: Any) -> Any:
        return Idle(change(state, seen=[1, {"deep": object()}]))

    stored = b'{"lines":["a"],"seen":null}'
    end = call(made(state=declared, handle_event=handle), "handle_event", "b", state=stored)
    assert isinstance(end, Returned)
    assert msgspec.json.decode(end.state) == {"lines": ["a", "b"], "seen": None}
    assert type(given[0]) is real
    error = error_of(call(made(state=declared, handle_event=fail), "handle_event", "b", state=stored))
    assert error.code == "bad_state"
    assert "seen" in error.message
    assert "[1]['deep']" in error.message


@pytest.mark.case(480)
@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize(("number", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_a_number_that_json_does_not_have_is_named(name: str, number: float, word: str) -> None:
    cls = made(state=STATES[name][0], handle_event=lambda self, event, state: Idle(change(state, seen=[None, {"deep": number}])))
    error = error_of(call(cls, "handle_event", 1, state=b'{"lines":[],"seen":1}'))
    assert error.code == "bad_state"
    assert "seen" in error.message and f"[1]['deep'] is {word}" in error.message


@pytest.mark.parametrize("name", ["struct", "dataclass", "typed dict", "dict"])
def test_a_state_of_another_type_is_named(name: str) -> None:
    cls = made(state=STATES[name][0], handle_event=lambda self, event, state: Idle("text"))
    assert error_of(call(cls, "handle_event", 1, state=b'{"lines":[],"seen":1}')).code == "bad_state"


@pytest.mark.parametrize("name", ["struct", "dataclass", "typed dict"])
def test_a_field_of_the_wrong_type_is_named(name: str) -> None:
    cls = made(state=STATES[name][0], handle_event=lambda self, event, state: Idle(change(state, lines=[7])))
    error = error_of(call(cls, "handle_event", 1, state=b'{"lines":[],"seen":1}'))
    assert error.code == "bad_state"
    assert "lines" in error.message


def test_the_state_of_a_generic_base_or_a_name_is_found() -> None:
    assert state_type(made(state=Struct)) is Struct
    assert state_type(type("Heir", (made(state=Struct),), {})) is Struct
    assert state_type(made(state="Struct", __module__=__name__)) is Struct
    with pytest.raises(InvalidAgent, match="nowhere"):
        Codec(made(state="nowhere"))
    with pytest.raises(InvalidAgent, match="State"):
        Codec(made(state=Struct | dict[str, Any]))


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"watchdog_s": "10"}, "watchdog_s = '10'"),
        ({"watchdog_s": 0}, "watchdog_s"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"state_version": "2"}, "state_version"),
        ({"restart": "never"}, "restart"),
        ({"backend": 7}, "backend"),
    ],
)
def test_a_class_that_cannot_be_an_agents_is_refused_with_the_attribute(attributes: dict[str, Any], words: str) -> None:
    check_class(made())
    with pytest.raises(InvalidAgent, match=words):
        check_class(made(**attributes))


@pytest.mark.case(481)
def test_a_class_that_lacks_a_required_callback_is_refused() -> None:
    def lacking(*names: str) -> type[Agent[Any]]:
        return made(**{name: getattr(Agent, name) for name in names})

    with pytest.raises(InvalidAgent, match="has no handle_response: every agent defines init_agent and handle_response"):
        check_class(lacking("handle_response"))
    with pytest.raises(InvalidAgent, match="has no init_agent and no handle_response"):
        check_class(lacking("init_agent", "handle_response"))


@pytest.mark.case(6)
def test_a_constructor_that_raises_fails_what_needed_it() -> None:
    def refuse(self: Any) -> None:
        raise RuntimeError("no room")

    cls = made(__init__=refuse)
    for hook, args, state in (("init_agent", ({},), None), ("handle_event", (1,), b"[]"), ("start_session", ({},), b"[]")):
        end = call(cls, hook, *args, state=state)
        assert isinstance(end, Raised)
        assert "no room" in end.error.message


# --- states of another version ------------------------------------------------------------------------------------------
def resumed(cls: type[Agent[Any]], stored: bytes, version: int) -> Input:
    return call(cls, "resume_session", Raw(b"{}"), {}, version, state=stored)


def state_of(end: Input) -> Any:
    assert isinstance(end, Returned), end
    return msgspec.json.decode(end.state) if end.state != NOTHING else None


def test_new_fields_with_defaults_and_fields_that_are_gone_read_old_states() -> None:
    for name in ("struct", "dataclass"):
        assert state_of(resumed(made(state=STATES[name][0]), b'{"lines":["a"],"gone":1}', 1)) is None


def test_a_state_that_does_not_fit_says_what_to_do() -> None:
    error = error_of(resumed(made(state=Struct), b'{"lines":{"not":"a list"}}', 1))
    assert error.code == "bad_state"
    assert "version 1" in error.message
    assert "lines" in error.message
    assert "migrate_state" in error.message


@pytest.mark.parametrize("plain", [True, False])
def test_migrate_state_repairs_it(plain: bool) -> None:
    def migrate(self: Any, old: Any, version: int) -> Struct:
        return Struct(lines=[f"{key}={value}, version {version}" for key, value in old["lines"].items()])

    async def migrate_later(self: Any, old: Any, version: int) -> Struct:
        return migrate(self, old, version)

    cls = made(state=Struct, state_version=2, migrate_state=migrate if plain else migrate_later)
    assert state_of(resumed(cls, b'{"lines":{"a":1}}', 1)) == {"lines": ["a=1, version 1"], "seen": None}


def test_it_runs_whenever_the_versions_differ() -> None:
    def migrate(self: Any, old: Any, version: int) -> Struct:
        return Struct(lines=[line.upper() for line in old["lines"]])

    cls = made(state=Struct, state_version=2, migrate_state=migrate)
    assert state_of(resumed(cls, b'{"lines":["a"]}', 1)) == {"lines": ["A"], "seen": None}
    assert state_of(resumed(cls, b'{"lines":["A"]}', 2)) is None, "once"


def test_without_it_a_state_that_fits_is_taken_as_it_is_and_is_of_the_new_version() -> None:
    assert state_of(resumed(made(state=Struct, state_version=2), b'{"lines":["a"]}', 1)) == {"lines": ["a"]}


@pytest.mark.parametrize(
    ("migrate", "words"),
    [
        (lambda self, old, version: 1 / 0, "migrate_state raised ZeroDivisionError"),
        (lambda self, old, version: None, "migrate_state: the state is a NoneType"),
        (lambda self, old, version: Struct(lines=cast("Any", [7])), "migrate_state: the state could not be read again"),
    ],
)
def test_a_bad_migration_changes_nothing_and_is_named(migrate: Any, words: str) -> None:
    assert words in error_of(resumed(made(state=Struct, state_version=2, migrate_state=migrate), b'{"lines":{}}', 1)).message
