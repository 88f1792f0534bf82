"""The options of the codex backend; the configuration, parameters and environment that Codex gets from them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from agentmesh.errors import BackendError
from agentmesh.tools import ToolSpec
from agentmesh_node.tools.turn_bounds import ITERATIONS, RESULT_BYTES, TOOL_RUNS

PROVIDER = "mesh"
"""Name of the model provider in Codex's configuration; its threads remember the name."""
BINARY = "CODEX_BINARY"
"""Variable of the node's environment: a program to run instead of the one that the extra installs."""
PASSED = (
    "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
"""Variables of the node that the child gets, besides the key and the variables that the option `env` names."""

type Positive = Annotated[int, msgspec.Meta(ge=1)]
type Sandbox = Literal["read-only", "workspace-write", "danger-full-access"]
type ApprovalPolicy = Literal["never", "on-request", "untrusted"]


class CodexOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The backend options; docs/backends.md has the table. Times are in seconds."""

    model: str | None = None
    effort: str | None = None
    instructions: str | None = None
    cwd: str | None = None
    sandbox: Sandbox = "workspace-write"
    approval_policy: ApprovalPolicy = "never"
    network: bool = False
    writable_roots: tuple[str, ...] = ()
    web_search: Literal["disabled", "cached", "live"] = "disabled"
    base_url: str = "https://api.openai.com/v1"
    key_env: str | None = "OPENAI_API_KEY"
    env: tuple[str, ...] = ()
    output_schema: dict[str, Any] | None = None
    config: dict[str, Any] = {}
    request_retries: int = 4
    stream_retries: int = 5
    limit_retries: int = 3
    start_timeout_s: float = 60.0
    unreachable_s: float = 60.0
    max_iterations: Positive = ITERATIONS
    max_tool_runs: Positive = TOOL_RUNS
    max_result_bytes: Positive = RESULT_BYTES


def options_from(given: Mapping[str, Any]) -> CodexOptions:
    """The options in `given`.

    Raises:
        BackendError: an option is unknown or has a wrong value; `details["reason"]` is `bad_options`.
    """
    try:
        options = msgspec.convert(dict(given), CodexOptions)
    except msgspec.ValidationError as error:
        raise refused("bad_options", f"the codex backend's options cannot be used: {error}") from None
    if options.cwd is not None and not Path(options.cwd).is_absolute():
        raise refused("bad_options", f"the option cwd is an absolute path, not {options.cwd!r}")
    if PROVIDER in options.config.get("model_providers", {}):
        raise refused("bad_options", f"the model provider {PROVIDER!r} is made of the options base_url and key_env")
    return options


def refused(reason: str, message: str, **details: Any) -> BackendError:
    """An error that trying again does not mend."""
    return BackendError(message, details={"reason": reason, "retryable": False, **details})


def key_of(options: CodexOptions, environ: Mapping[str, str]) -> str | None:
    """The provider's key; None if it needs none.

    Raises:
        BackendError: the node's environment has no key; `details["reason"]` is `no_credentials`.
    """
    if options.key_env is None:
        return None
    key = environ.get(options.key_env)
    if not key:
        raise refused(
            "no_credentials", f"this node has no {options.key_env}; set it in the node's environment, or name another in key_env"
        )
    return key


def environment(options: CodexOptions, environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """The child's whole environment.

    Raises:
        BackendError: as `key_of`.
    """
    env = {name: environ[name] for name in (*PASSED, *options.env) if name in environ}
    key = key_of(options, environ)
    if key is not None and options.key_env is not None:
        env[options.key_env] = key
    return env | {"HOME": str(home), "CODEX_HOME": str(home), "TMPDIR": str(home / "tmp")}


def binary(environ: Mapping[str, str]) -> tuple[str, str | None]:
    """The program, and the directory with its helper programs for PATH. Blocks: it imports a package.

    Raises:
        BackendError: there is no program; `details["reason"]` is `not_installed`.
    """
    own = environ.get(BINARY)
    if own:
        if not os.access(own, os.X_OK):
            raise refused("not_installed", f"{BINARY} names {own}, which cannot be run")
        return own, None
    try:
        from codex_cli_bin import bundled_codex_path, bundled_path_dir  # noqa: PLC0415 - an extra
    except ImportError:
        raise refused("not_installed", f"there is no Codex on this node; install agentmesh[codex], or set {BINARY}") from None
    tools = bundled_path_dir()
    return str(bundled_codex_path()), str(tools) if tools is not None else None


def configuration(options: CodexOptions) -> dict[str, Any]:
    """Codex's configuration for a thread: the option `config`, overridden by the other options and by what the mesh needs."""
    provider = {
        "name": PROVIDER,
        "base_url": options.base_url,
        "wire_api": "responses",
        "request_max_retries": options.request_retries,
        "stream_max_retries": options.stream_retries,
        **({"env_key": options.key_env} if options.key_env is not None else {}),
    }
    own: dict[str, Any] = {
        "model_provider": PROVIDER,
        "model_providers": {PROVIDER: provider},
        "web_search": options.web_search,
        # Threads that Codex starts beside this one would not be counted, and would be lost in a takeover.
        "features": {"multi_agent": False},
        # Commands that the model runs do not see the key.
        "shell_environment_policy": {"exclude": [options.key_env] if options.key_env is not None else []},
        "sandbox_workspace_write": {
            "network_access": options.network,
            "writable_roots": list(options.writable_roots),
            # Other agents' files may be there; TMPDIR is a directory of the agent's own.
            "exclude_slash_tmp": True,
        },
        "check_for_update_on_startup": False,
    }
    return merged(options.config, own)


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings merged; `over` wins, and lists are joined."""
    found = dict(under)
    for name, value in over.items():
        former = found.get(name)
        if isinstance(value, Mapping) and isinstance(former, Mapping):
            found[name] = merged(former, value)
        elif isinstance(value, list) and isinstance(former, list):
            found[name] = [*former, *value]
        else:
            found[name] = value
    return found


def thread_params(options: CodexOptions, cwd: Path) -> dict[str, Any]:
    """The common parameters of `thread/start` and `thread/resume`."""
    params: dict[str, Any] = {
        "cwd": str(cwd),
        "modelProvider": PROVIDER,
        "approvalPolicy": options.approval_policy,
        "sandbox": options.sandbox,
        "config": configuration(options),
    }
    if options.model is not None:
        params["model"] = options.model
    if options.instructions is not None:
        params["developerInstructions"] = options.instructions
    return params


def dynamic_tools(specs: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """The agent's own tools, in Codex's form."""
    return [
        {"type": "function", "name": spec.name, "description": spec.description, "inputSchema": spec.schema} for spec in specs
    ]
