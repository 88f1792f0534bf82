"""What stands where Claude Code should be: processes that say nonsense, nothing, or end; and options that make no sense."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from agentmesh.errors import BackendError
from agentmesh.subjects import Subjects
from agentmesh_node.backends.claude.options import ClaudeOptions, command, credential, environment, read, secrets
from node.backends.claude_desk import KEY, childless, desk, play
from support import Server, run

BEGIN = """
import json, sys, time
def say(**message):
    print(json.dumps(message), flush=True)
request = json.loads(sys.stdin.readline())
say(type="control_response", response={"subtype": "success", "request_id": request["request_id"], "response": {}})
sys.stdin.readline()
"""


def stand_in(path: Path, code: str) -> str:
    """An executable that does `code`."""
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('welcome!')", "crashed"),
        ("print('{\"type\": \"sys')", "bad_output"),
        ("import sys; sys.stdin.readline(); sys.exit('no licence')", "crashed"),
        (BEGIN + "print('{half a mess')", "bad_output"),
        (BEGIN + "say(type='assistant', message={'content': 5})", "bad_output"),
        (BEGIN + "say(type='transcript_mirror')", "bad_output"),
        (BEGIN + "print('\\xff\\x00 not JSON at all'); print('[1]'); sys.exit(0)", "crashed"),
        (BEGIN + "say(type='result', subtype='error_during_execution', is_error=True, duration_ms=1, duration_api_ms=1,"
         " num_turns=1, session_id='s', errors=['it broke'])", "failed"),
        (BEGIN + "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed"),
        ("import time; time.sleep(600)", "start_timeout"),
    ],
)  # fmt: skip
def test_a_child_that_is_no_claude_code_is_a_typed_error(
    server: Server, subjects: Subjects, tmp_path: Path, code: str, reason: str
) -> None:
    cli = stand_in(tmp_path / "claude", code)

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend(cli_path=cli, start_timeout_s=0.7 if reason == "start_timeout" else 30)
            before = await backend.start_session()
            events, after = await play(backend, before, "hello", room.turn())
            assert [event.kind for event in events if event.terminal] == ["error"]
            assert events[-1].data["reason"] == reason, events[-1]
            assert events[-1].data["message"]
            assert after == before
            await childless(tmp_path)

    run(main())


def test_what_it_said_last_is_in_the_error_without_secrets(
    server: Server, subjects: Subjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    cli = stand_in(tmp_path / "claude", f"import sys; sys.stdin.readline(); sys.exit('cannot use {KEY} here')")

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend(cli_path=cli)
            events, _ = await play(backend, await backend.start_session(), "hello", room.turn())
            assert events[-1].data["exit_code"] == 1
            assert "cannot use *** here" in events[-1].data["message"]

    run(main())


def test_an_executable_that_is_not_there(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            with pytest.raises(BackendError) as caught:
                room.backend(cli_path=str(tmp_path / "nothing"))
            assert caught.value.details["reason"] == "not_installed"

    run(main())


def test_a_working_directory_that_is_not_there(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            backend = room.backend(cwd=str(tmp_path / "nothing"))
            with pytest.raises(BackendError) as caught:
                await backend.start_session()
            assert caught.value.details["reason"] == "no_directory"

    run(main())


@pytest.mark.parametrize(
    "options",
    [
        {"modle": "claude-sonnet-5"},
        {"permission_mode": "yolo"},
        {"max_budget_usd": 0},
        {"max_turns": -1},
        {"max_retries": -1},
        {"cwd": "relative/path"},
        {"cwd": "/x", "api_key": "sk-no-secrets-here"},
        {"allowed_tools": "Bash"},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BackendError) as caught:
        read(options)
    assert caught.value.details["reason"] == "bad_options"
    assert "sk-no-secrets-here" not in str(caught.value)


def test_the_environment_is_built_and_not_inherited() -> None:
    node = {
        "PATH": "/bin", "LC_ALL": "C", "ANTHROPIC_API_KEY": KEY, "AWS_SECRET_ACCESS_KEY": "not for it",
        "NATS_PASSWORD": "nor this",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-token=a-secret-value", "HOME": "/root", "CLAUDE_CONFIG_DIR": "/r/.claude",
        "GIT_EDITOR": "ed", "HTTPS_PROXY": "http://user:a-proxys-password@proxy:3128",
        "TRACEPARENT": "00-of-the-nodes-own-start",
    }  # fmt: skip
    env = environment(ClaudeOptions(pass_env=("GIT_EDITOR", "NOT_SET")), node, home="/h", config="/c", cwd="/w")
    assert set(node) - set(env) == {"ANTHROPIC_API_KEY", "AWS_SECRET_ACCESS_KEY", "NATS_PASSWORD", "TRACEPARENT"}
    assert (env["HOME"], env["CLAUDE_CONFIG_DIR"], env["PWD"], env["GIT_EDITOR"]) == ("/h", "/c", "/w", "ed")
    held = credential(node)
    assert held == ("CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR", KEY)
    assert set(secrets(env, held)) == {KEY, "x-token=a-secret-value", "a-proxys-password"}


def test_no_value_of_an_option_becomes_a_flag() -> None:
    options = ClaudeOptions(model="--dangerously-skip-permissions", system_prompt="-p", allowed_tools=("--print",))
    line = command(options, "/claude", session="s2", source="s1", own_tools=True)
    assert "--model=--dangerously-skip-permissions" in line
    assert not {"--dangerously-skip-permissions", "-p", "--print"} & set(line)
    assert "--resume=s1" in line
    assert set(json.loads(line[line.index("--mcp-config") + 1])["mcpServers"]) == {"agent"}


def test_the_sdk_is_not_imported_before_a_turn() -> None:
    code = (
        "import sys; import agentmesh_node.backends.claude; "
        "sys.exit(bool({'claude_agent_sdk', 'mcp', 'anthropic'} & set(sys.modules)))"
    )
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code) == 0
