"""A request's own key, as commands are given it (case 692)."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from agentmesh.errors import BadRequest
from agentmesh_client.cli.mesh_keys import VARIABLE, key_in

pytestmark = pytest.mark.case(692)


def test_a_file_that_is_not_there_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "order"
    with pytest.raises(BadRequest, match="order"):
        key_in(f"@{file}")
    key = key_in(f"@{file}", make=True)
    assert key is not None and len(key) >= 32 and key == key_in(f"@{file}", make=True) == key_in(f"@{file}")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key_in(f"@{tmp_path / 'other'}", make=True) != key


def test_the_option_goes_before_the_variable_and_neither_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert key_in(None) is None
    monkeypatch.setenv(VARIABLE, "v" * 16)
    assert (key_in(None), key_in("o" * 16)) == ("v" * 16, "o" * 16)
    (tmp_path / "key").write_text("f" * 20 + "\n")
    monkeypatch.setenv(VARIABLE, f"@{tmp_path / 'key'}")
    assert key_in(None) == "f" * 20
    for bad in ("short", f"@{tmp_path}"):
        with pytest.raises(BadRequest):
            key_in(bad, make=True)
