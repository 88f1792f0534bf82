"""Names of servers' tools before a model: fit for APIs, apart, and recognisable."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh_node.tools.mcp.names import model_names

FIT = re.compile(r"[A-Za-z0-9_-]{1,64}")


def named(*tools: str, server: str = "shop", taken: tuple[str, ...] = (), servers: tuple[str, ...] = ("shop",)) -> dict[str, str]:
    return model_names(server, tools, taken=taken, servers=servers)


@pytest.mark.case(422)
def test_names_that_fall_together_stay_apart_and_recognisable() -> None:
    names = named("read.file", "read_file", "read file", "read-file")
    assert list(names.values()) == ["read.file", "read_file", "read file", "read-file"]
    assert {own: name for name, own in names.items()}["read_file"] == "shop__read_file"
    assert all(name.startswith("shop__read") and FIT.fullmatch(name) for name in names)


@pytest.mark.case(422)
def test_a_name_is_never_shortened_into_another_tool_s() -> None:
    short = "delete_all_files_of_this_user_that_are_older_than_a_year__"
    names = named(f"{short}but_only_ask", short[: 64 - len("shop__")], f"{short}and_do_not_ask")
    assert len(names) == 3
    assert names[f"shop__{short}"[:64]] == short[: 64 - len("shop__")], "the tool that has this very name keeps it"


def test_a_name_does_not_depend_on_what_else_there_is() -> None:
    alone = named("read.file")
    assert alone.keys() < named("read.file", "read_file", "other").keys()


def test_tools_of_servers_whose_names_begin_alike_stay_apart() -> None:
    both = ("a", "a__b")
    assert not named("b__c", server="a", servers=both).keys() & named("c", server="a__b", servers=both).keys()


def test_names_of_the_agent_s_own_tools_are_not_given_again() -> None:
    assert "shop__add" not in named("add", taken=("shop__add",))


@given(st.lists(st.text(max_size=80), unique=True, max_size=20), st.lists(st.text(max_size=10).map("shop__".__add__), max_size=5))
def test_names_are_fit_unique_and_each_tool_has_one(tools: list[str], taken: list[str]) -> None:
    names = named(*tools, taken=tuple(taken))
    assert sorted(names.values()) == sorted(tools)
    assert not names.keys() & set(taken)
    assert all(FIT.fullmatch(name) for name in names)
