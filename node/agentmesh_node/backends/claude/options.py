"""The options of the claude backend; the command line and the environment that Claude Code gets from them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from agentmesh_node.backends.claude.failures import refused
from agentmesh_node.tools.turn_bounds import ITERATIONS, RESULT_BYTES, TOOL_RUNS

SERVER = "agent"
"""Name of the MCP server under which the agent's own tools are offered."""
PREFIX = f"mcp__{SERVER}__"
"""Claude Code's prefix for the names of these tools."""

PASSED = (
    "PATH", "LANG", "LANGUAGE", "TZ", "TERM", "SHELL", "USER", "LOGNAME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "ANTHROPIC_BASE_URL",
    "CLAUDE_CODE_ENABLE_TELEMETRY", "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA",
)  # fmt: skip
"""Variables of the node that its children get, besides those that begin with one of `PASSED_PREFIXES`."""
PASSED_PREFIXES = ("LC_", "OTEL_")
SET = {
    "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    # A turn is one run of the process: work that goes on after the result would die with it.
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
    "CLAUDE_CODE_SDK_MCP_TOOL_IDLE_TIMEOUT": "86400000",
}
LONGEST_CALL_MS = 86_400_000
"""Claude Code's bound on a call of an own tool. The mesh has its own bound, which the model hears of."""
OWN_SERVER = {"type": "sdk", "name": SERVER, "alwaysLoad": True, "timeout": LONGEST_CALL_MS}
"""The agent's own tools: all of them are shown to the model from the start, without a search."""
LATER = ("CronCreate", "CronDelete", "CronList", "ScheduleWakeup")
"""Tools that schedule work for after the turn, when no process runs. An agent has timers for that."""
CREDENTIALS = {
    "ANTHROPIC_API_KEY": "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR",
    "CLAUDE_CODE_OAUTH_TOKEN": "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR",
}
"""Variables of the node that hold a credential (the first one that is set is used) -> the variable that tells the child which
file descriptor to read it from."""
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL|AUTH|HEADERS", re.IGNORECASE)
SHORTEST_SECRET = 8


class ClaudeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The backend options: `Init(state, backend={...})`. They are journaled: no secrets."""

    model: str | None = None
    fallback_model: str | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    system_prompt: str | None = None
    """Replaces Claude Code's own."""
    append_system_prompt: str | None = None
    """Added to Claude Code's own."""
    cwd: str | None = None
    """Working directory, absolute. By default a directory of the agent's own on each node."""
    add_dirs: tuple[str, ...] = ()
    """Further directories that its file tools may use, absolute."""
    permission_mode: Literal["default", "acceptEdits", "plan", "dontAsk", "bypassPermissions"] = "default"
    """Nobody is there to be asked: actions that need a person's permission are denied."""
    tools: tuple[str, ...] | None = None
    """The built-in tools that are available; by default Claude Code's own choice."""
    allowed_tools: tuple[str, ...] = ()
    """Tools, or rules such as `Bash(git:*)`, that need no permission. The agent's own tools never do."""
    disallowed_tools: tuple[str, ...] = ()
    max_turns: int | None = ITERATIONS
    """Most model answers in one turn of the agent."""
    max_tool_runs: int = TOOL_RUNS
    """Most runs of tools in one turn of the agent, of Claude Code's own, of the agent's and of subagents' together."""
    max_result_bytes: int = RESULT_BYTES
    """Most bytes of all their results in one turn of the agent."""
    max_budget_usd: float | None = None
    """Most that one turn of the agent may cost, in US dollars."""
    setting_sources: tuple[Literal["user", "project", "local"], ...] = ()
    """Settings files that are used. None by default: settings in a working directory can run commands."""
    expand_prompts: bool = False
    """Whether `@path` and slash commands in a prompt are expanded. Not by default: prompts come from others."""
    pass_env: tuple[str, ...] = ()
    """Further variables of the node that Claude Code gets, and so every command that it runs."""
    max_retries: int | None = None
    """How often Claude Code repeats a model call that failed; by default its own choice."""
    start_timeout_s: float = 60.0
    """How long it may take to begin."""
    cli_path: str | None = None
    """The executable; by default the one that comes with claude-agent-sdk."""

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_tool_runs", "max_result_bytes", "max_budget_usd", "start_timeout_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is more than 0")
        if self.max_retries is not None and self.max_retries < 0:
            raise ValueError("max_retries is 0 or more")
        for path in (self.cwd, self.cli_path, *self.add_dirs):
            if path is not None and not Path(path).is_absolute():
                raise ValueError(f"{path} is not an absolute path")


def read(options: Mapping[str, Any]) -> ClaudeOptions:
    """The options in `options`.

    Raises:
        BackendError: an option is unknown or has a wrong value; `details["reason"]` is `bad_options`.
    """
    try:
        return msgspec.convert(dict(options), ClaudeOptions)
    except (msgspec.ValidationError, ValueError) as error:
        raise refused("bad_options", f"the claude backend's options are wrong: {error}; docs/backends.md lists them") from None


def command(
    options: ClaudeOptions,
    cli: str,
    *,
    session: str,
    source: str | None,
    own_tools: bool,
    schema: Mapping[str, Any] | None = None,
) -> list[str]:
    """Claude Code's command line.

    Args:
        session: id of the session that this run makes.
        source: the session that it goes on from, which is not changed.
        own_tools: whether the agent has tools of its own.
        schema: that of the answer.
    """
    found = [cli, "--output-format", "stream-json", "--input-format", "stream-json", "--verbose", "--include-partial-messages"]
    found += ["--session-mirror", f"--session-id={session}"]
    if source is not None:
        found += [f"--resume={source}", "--fork-session"]
    found += [f"--setting-sources={','.join(options.setting_sources)}", "--strict-mcp-config"]
    found += ["--permission-mode", options.permission_mode]
    if own_tools:
        found += ["--mcp-config", json.dumps({"mcpServers": {SERVER: OWN_SERVER}})]
    if schema is not None:
        found.append(f"--json-schema={json.dumps(schema)}")
    if options.tools is not None:
        found.append(f"--tools={','.join(options.tools)}")
    allowed = (*options.allowed_tools, *((f"mcp__{SERVER}",) if own_tools else ()))
    if allowed:
        found.append(f"--allowedTools={','.join(allowed)}")
    found.append(f"--disallowedTools={','.join((*LATER, *options.disallowed_tools))}")
    values = {
        "model": options.model,
        "fallback-model": options.fallback_model,
        "effort": options.effort,
        "system-prompt": options.system_prompt,
        "append-system-prompt": options.append_system_prompt,
        "max-turns": options.max_turns,
        "max-budget-usd": options.max_budget_usd,
    }
    # With an equals sign, so that no value can be taken for another flag.
    found += [f"--{flag}={value}" for flag, value in values.items() if value is not None]
    for directory in options.add_dirs:
        found += ["--add-dir", directory]
    return found


def environment(options: ClaudeOptions, node: Mapping[str, str], *, home: str, config: str, cwd: str) -> dict[str, str]:
    """The whole environment of the child, without its credential. `node` is the node's own."""
    found = {name: value for name, value in node.items() if name in PASSED or name.startswith(PASSED_PREFIXES)}
    found.update({name: node[name] for name in options.pass_env if name in node})
    # There is no other way to pass this variable: the commands that Claude Code runs can read it.
    if not credential(node) and "ANTHROPIC_AUTH_TOKEN" in node:
        found["ANTHROPIC_AUTH_TOKEN"] = node["ANTHROPIC_AUTH_TOKEN"]
    found.update(SET, HOME=home, CLAUDE_CONFIG_DIR=config, PWD=cwd)
    if options.max_retries is not None:
        found["CLAUDE_CODE_MAX_RETRIES"] = str(options.max_retries)
    return found


def credential(node: Mapping[str, str]) -> tuple[str, str] | None:
    """The variable that tells the child a file descriptor, and the credential to read from it; None if the node has none."""
    for name, told in CREDENTIALS.items():
        if node.get(name):
            return told, node[name]
    return None


def secrets(env: Mapping[str, str], held: tuple[str, str] | None) -> list[str]:
    """The texts to strike out of the child's output, longest first."""
    found = {value for name, value in env.items() if SECRET_NAME.search(name)}
    found.update(urlsplit(value).password or "" for value in env.values() if "://" in value and "@" in value)
    if held is not None:
        found.add(held[1])
    return sorted((value for value in found if len(value) >= SHORTEST_SECRET), key=len, reverse=True)


def executable(options: ClaudeOptions) -> str:
    """The executable that is run: the one that the options name, else the one that comes with the SDK.

    Raises:
        BackendError: the SDK is not installed, or there is no such executable; `details["reason"]` is `not_installed`.
    """
    spec = importlib.util.find_spec("claude_agent_sdk")  # without importing it
    if spec is None or spec.origin is None:
        raise refused("not_installed", "there is no claude-agent-sdk on this node; install agentmesh[claude]")
    path = options.cli_path or str(Path(spec.origin).parent / "_bundled" / "claude")
    if not os.access(path, os.X_OK):
        raise refused("not_installed", f"there is no Claude Code at {path} that can be run; mend the option cli_path")
    return path
