"""docs/backends.md says what the code does: options, reasons, and examples that compile."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh.agent import Agent
from agentmesh.backend import Backend
from agentmesh.callback_results import check_class
from agentmesh.testing import BackendConformance
from agentmesh.tools.declared import DEFAULT_TIMEOUT_S, EFFECTS
from agentmesh_node.backends.anthropic import failures as anthropic
from agentmesh_node.backends.anthropic.options import AnthropicOptions
from agentmesh_node.backends.api import failures
from agentmesh_node.backends.openai import failures as openai
from agentmesh_node.backends.openai.options import OpenAIOptions
from agentmesh_node.tools.calls import MAX_RESULT

PAGE = (Path(__file__).parents[3] / "docs" / "backends.md").read_text()


def section(title: str) -> str:
    """A section of the page, with those below it."""
    level = re.search(rf"^(#+) {title}$", PAGE, re.MULTILINE)
    assert level is not None, title
    rest = PAGE[level.end() :]
    end = re.search(rf"^#{{1,{len(level[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def first_column(text: str) -> set[str]:
    """What stands in backticks in the first column of the section's tables."""
    return {name for row in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE) for name in re.findall(r"`([a-z_0-9]+)`", row)}


def test_each_option_is_in_the_table_with_its_default() -> None:
    table = section("anthropic").partition("### Errors")[0]
    assert first_column(table) - {"option"} == set(AnthropicOptions.__struct_fields__)
    defaults = {field.name: field.default for field in msgspec.structs.fields(AnthropicOptions)}
    named = ("model", "max_tokens", "timeout_s", "attempts", "max_wait_s", "max_iterations", "parallel_tools")
    for name in (*named, "max_tool_runs", "max_result_bytes"):
        row = re.search(rf"^\| `{name}` \| `?([^`|]*?)`? \|", table, re.MULTILINE)
        assert row is not None
        assert row[1] == str(defaults[name]).removesuffix(".0")


def test_each_option_of_openai_is_in_the_table_with_its_default() -> None:
    table = section("openai").partition("What servers do")[0]
    assert first_column(table) - {"option"} == set(OpenAIOptions.__struct_fields__)
    defaults = {field.name: field.default for field in msgspec.structs.fields(OpenAIOptions)}
    named = ("model", "api", "max_tokens_as", "timeout_s", "attempts", "max_wait_s", "max_iterations", "parallel_tools")
    for name in (*named, "max_tool_runs", "max_result_bytes"):
        row = re.search(rf"^\| `{name}` \| `?([^`|]*?)`? \|", table, re.MULTILINE)
        assert row is not None
        assert row[1] == str(defaults[name]).removesuffix(".0")


def test_each_reason_is_in_the_table_and_says_whether_to_try_again() -> None:
    table = section("Errors")
    reasons = {
        *failures._BY_TYPE.values(),
        *failures._BY_STATUS.values(),
        *failures._BY_CODE.values(),
        *failures._NEXT,
        *(reason for api in (anthropic.API, openai.API) for reason in api.hints),
        *failures.RETRYABLE,
        *failures.REJECTED,
    }
    bounds = {"max_iterations", "max_tool_runs", "max_result_bytes"}
    others = {*bounds, "not_installed", "bad_options", "bad_attachment", "tools_unavailable"}
    assert first_column(table) - {"reason"} == reasons | others
    for reason in reasons:
        (row,) = [line for line in table.splitlines() if line.startswith("| ") and f"`{reason}`" in line.split("|")[1]]
        assert row.split("|")[3].strip().startswith("yes" if reason in failures.RETRYABLE else "no"), row
        assert ("leaves no trace" in row) is (reason in failures.REJECTED), row


def test_effects_and_bounds_are_those_of_the_code() -> None:
    tools = section("Tools")
    assert first_column(tools) >= EFFECTS
    assert f"({DEFAULT_TIMEOUT_S:g} s unless set)" in tools
    assert f"{MAX_RESULT:,} characters" in tools


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_examples_compile(block: str) -> None:
    ast.parse(block)


def example() -> dict[str, Any]:
    """The names of the page's backend in a file."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Parrot" in block]
    names: dict[str, Any] = {}
    exec(compile(block, "docs/backends.md", "exec"), names)
    assert len(block.partition("class Bird")[0].strip().splitlines()) <= 36
    return names


class TestTheBackendOfThePage(BackendConformance):
    failing_prompt = "fail"

    def backend(self) -> Backend:
        made: Backend = example()["Parrot"](Agent(), {})
        return made


def test_the_class_of_the_page_names_its_backend() -> None:
    bird = example()["Bird"]
    check_class(bird)
    assert bird.backend.__name__ == "Parrot"
