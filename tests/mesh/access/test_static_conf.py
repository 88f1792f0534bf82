"""The file that a server includes."""

from __future__ import annotations

import re

from agentmesh.access.static_conf import User, rendered

USERS = (
    User("node", "node", "$2b$05$node"),
    User("shop", "caller", "$2b$05$shop", ("team-a.", "clerk"), ("status", "cancel")),
)


def test_users_stand_in_their_accounts_with_their_lists() -> None:
    text = rendered("mesh", USERS)
    mesh, callers = text.split("  MESH_CALLERS {")
    assert 'user: "node"' in mesh
    assert 'user: "shop"' in callers
    assert '"mesh.ask.team-a.>"' in callers
    assert '"$JS.API.DIRECT.GET.KV_mesh-registry.$KV.mesh-registry.agents.clerk"' in callers
    assert "system_account: SYS" in callers


def test_each_service_is_remembered_as_long_as_an_answer_may_take() -> None:
    text = rendered("mesh", USERS, threshold="36h")
    services = [line for line in text.partition("imports")[0].splitlines() if "service:" in line]
    assert len(services) == 7
    assert all('threshold: "36h"' in line and "response_type" not in line for line in services)
    assert all("share: true" in line for line in text.partition("imports")[2].splitlines() if "service:" in line)


def test_a_control_request_crosses_only_if_a_caller_may_send_it() -> None:
    assert "control-cancel" in rendered("mesh", USERS)
    assert "control-" not in rendered("mesh", USERS[:1])


def test_the_same_users_give_the_same_file_and_one_entry_stands_on_each_line() -> None:
    text = rendered("mesh", USERS)
    assert text == rendered("mesh", reversed(USERS))
    lists = re.findall(r"allow: \[\n(.*?)\n        \] ", text, re.DOTALL)
    assert lists
    assert all(line.count('"') == 2 for block in lists for line in block.splitlines())
