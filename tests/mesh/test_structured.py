"""Typed answers: which types there are, what is read as a value of one, and what providers are told."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.agent import Agent
from agentmesh.callback_results import check_class
from agentmesh.errors import BadAnswer, Interrupted, InvalidAgent
from agentmesh.structured import MOST_TEXT, AnswerType, Misfit, UnusableType, answer_of
from agentmesh.wire import ErrorBody, Outcome


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Step(msgspec.Struct):
    """A step."""

    number: Annotated[int, msgspec.Meta(ge=1)]
    what: str


class Plan(msgspec.Struct):
    steps: list[Step]
    size: Size = Size.SMALL
    first: Step | None = None
    until: dt.date | None = None


@dataclasses.dataclass
class Place:
    city: str
    tags: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        if self.city == "nowhere":
            raise LookupError("there is no such city")


class Point(TypedDict):
    x: float
    y: float


class Tree(msgspec.Struct):
    value: int
    children: list[Tree] = []


class Free(msgspec.Struct):
    anything: Any = None
    by_name: dict[str, int] = {}


class Row(msgspec.Struct, array_like=True):
    x: int


class Box[T](msgspec.Struct):
    inner: T


PLAN = '{"steps":[{"number":1,"what":"go"}],"size":"large"}'
WHOLE = '{"steps":[{"number":1,"what":"go"}],"size":"large","first":null,"until":null}'


@pytest.mark.case(760)
@pytest.mark.parametrize(
    ("given", "text"),
    [
        (Plan, WHOLE),
        (Place, '{"city":"Paris","tags":["a","b"]}'),
        (Point, '{"x":1.5,"y":2.0}'),
        (Tree, '{"value":1,"children":[{"value":2,"children":[]}]}'),
        (Free, '{"anything":[1,{"a":null}],"by_name":{"b":1}}'),
        (Box[int], '{"inner":7}'),
    ],
)
def test_an_answer_is_a_value_of_its_type_and_its_canonical_form_is_read_again(given: Any, text: str) -> None:
    known = AnswerType(given)
    value = known.read(text)
    assert known.canonical(value) == text
    assert known.read(known.fitting(text)) == value
    assert json.loads(json.dumps(known.schema)) == known.schema


@pytest.mark.case(760)
@pytest.mark.parametrize("given", [int, list[Plan], Plan | None, Row, dict, Any, "Plan", None])
def test_what_has_no_object_for_its_json_is_refused_with_what_to_do(given: Any) -> None:
    with pytest.raises(UnusableType, match=r"a msgspec Struct .* put anything else into a field of one"):
        AnswerType(given)


@pytest.mark.case(760)
def test_a_type_that_json_cannot_express_is_told_when_the_class_is_loaded() -> None:
    class Odd(msgspec.Struct):
        when: complex

    class Wide(msgspec.Struct):
        of: Annotated[str, msgspec.Meta(description="x" * 20_000)]

    class Planner(Agent[int]):
        def init_agent(self, options: Any) -> Any:
            raise NotImplementedError

        def handle_response(self, ref: Any, response: Any, state: Any) -> Any:
            raise NotImplementedError

    for wrong, why in ((Odd, "use types that JSON has"), (Wide, "at most 16384"), (int, "a msgspec Struct")):
        Planner.answer_type = wrong
        with pytest.raises(InvalidAgent, match=f"Planner.answer_type.*{why}"):
            check_class(Planner)
    Planner.answer_type = Plan
    check_class(Planner)


@pytest.mark.case(761)
@pytest.mark.parametrize(
    "text",
    [
        PLAN,
        f"  {PLAN}\n",
        f"```json\n{PLAN}\n```",
        f"Here is the plan:\n\n```\n{PLAN}\n```\nShall I go on?",
        PLAN.replace('"size"', '"more": [1, 2], "size"'),
    ],
)
def test_json_alone_or_in_the_one_block_of_code_is_an_answer(text: str) -> None:
    assert AnswerType(Plan).fitting(text) == WHOLE


@pytest.mark.case(761)
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON"),
        ("I cannot say.", "no JSON"),
        (f"The plan: {PLAN}", "no JSON"),
        (f"{PLAN} That is all.", "no JSON"),
        (PLAN[:-1], "no JSON"),
        (f"```\n{PLAN}\n```\n```\n{PLAN}\n```", "2 blocks"),
        ('{"steps":[],"steps":[]}', "twice"),
        ('{"steps":[],"size":NaN}', "NaN is no JSON"),
        ('{"steps":1e999}', "too large"),
        ('{"steps":["\\ud800"]}', "half a character"),
        ('{"steps":' + "[" * 200 + "]" * 200 + "}", "deep"),
        ('{"steps":' + "[" * 100_000 + "]" * 100_000 + "}", "deep|recursion"),
        ("[" * 200_000, "no JSON"),
        ("[]", r"Expected `object`, got `array`"),
        ("{}", "missing required field `steps`"),
        ('{"steps":[{"number":0,"what":"go"}]}', r"`int` >= 1 - at `\$.steps\[0\].number`"),
        ('{"steps":"none"}', r"at `\$.steps`"),
        ("x" * (MOST_TEXT + 1), "at most"),
    ],
)
def test_anything_else_is_a_misfit_that_says_why(text: str, why: str) -> None:
    with pytest.raises(Misfit, match=why):
        AnswerType(Plan).fitting(text)


@pytest.mark.case(761)
def test_what_is_remembered_is_the_answer_that_was_read() -> None:
    known = AnswerType(Plan)
    for text in ("", PLAN, "", PLAN, WHOLE):
        if text:
            assert known.fitting(text) == WHOLE and known.value(known.fitting(text)) == known.read(PLAN)
        else:
            with pytest.raises(Misfit):
                known.fitting(text)


@pytest.mark.case(761)
def test_what_the_types_own_code_raises_is_a_misfit() -> None:
    with pytest.raises(Misfit, match="LookupError: there is no such city"):
        AnswerType(Place).read('{"city": "nowhere"}')


@given(st.text())
def test_no_text_does_anything_else(text: str) -> None:
    known = AnswerType(Plan)
    try:
        assert known.read(known.fitting(text)) == known.read(text)
    except Misfit as misfit:
        known.refused(text, str(misfit))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_a_value_that_is_read_again_is_the_same(value: Any) -> None:
    known = AnswerType(Free)
    try:
        text = known.canonical(Free(anything=value))
    except Misfit:
        return
    assert known.fitting(text) == text


@pytest.mark.case(762)
def test_providers_get_what_all_of_them_know() -> None:
    strict = AnswerType(Plan).strict
    assert strict is not None
    step = {"$ref": "#/$defs/Step"}
    assert strict["required"] == ["steps", "size", "first", "until"]
    assert strict["additionalProperties"] is False
    assert strict["properties"]["first"] == {"anyOf": [step, {"type": "null"}]}
    assert strict["$defs"]["Step"] == {
        "description": "A step.",
        "type": "object",
        "properties": {"number": {"description": "(minimum: 1)", "type": "integer"}, "what": {"type": "string"}},
        "required": ["number", "what"],
        "additionalProperties": False,
    }


@pytest.mark.case(762)
@pytest.mark.parametrize("given", [Tree, Free])
def test_what_they_cannot_express_they_are_not_given(given: Any) -> None:
    assert AnswerType(given).strict is None


@pytest.mark.case(767)
def test_an_outcome_is_read_as_a_type() -> None:
    assert answer_of(Outcome(agent="a", ref="1", ok=True, text=PLAN), Plan).size is Size.LARGE
    with pytest.raises(BadAnswer, match="the answer is no Plan: it is no JSON") as raised:
        answer_of(Outcome(agent="a", ref="1", ok=True, text="no"), AnswerType(Plan))
    assert raised.value.details["text"] == "no"
    with pytest.raises(Interrupted):
        answer_of(Outcome(agent="a", ref="1", ok=False, error=ErrorBody(code="interrupted", message="m")), Plan)
