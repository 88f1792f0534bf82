"""The verb that changes a running agent's configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from agentmesh_client.cli import exits
from agentmesh_client.cli.common import (
    BUDGET_EXAMPLE,
    DEFAULTS,
    AgentName,
    Globals,
    Pairs,
    json_object,
    json_or_text,
    session,
)

if TYPE_CHECKING:
    from agentmesh.control_values import Configuration
    from agentmesh_client import AgentUpdate, ChangeEntry


async def change(
    name: AgentName,
    /,
    *,
    backend_option: Pairs = None,
    label: Pairs = None,
    budget: str | None = None,
    watchdog: float | None = None,
    restart: Literal["permanent", "transient", "temporary"] | None = None,
    expect: str | None = None,
    timeout: float = 30.0,
    options: Globals = DEFAULTS,
) -> int:
    """Change the configuration of a running agent. What is not named stays; the next turn uses what is set.

    Parameters
    ----------
    backend_option
        key=value for the agent's backend, several times; the value is JSON, or else text; null removes the option.
    label
        key=value that a node must have to run the agent, several times; an empty value removes the label.
    budget
        What each turn may cost, as JSON: {"usd": 1, "tokens": 100000, "wall_s": 60, "tool_calls": 20}, or some of these; {} for
        no bounds.
    watchdog
        Longest turn, in seconds.
    restart
        What happens when the agent's own code crashes; at most 5 restarts in 60 s.
    expect
        The configuration that you want to change, as `mesh status` shows it; if it is another one, nothing changes.
    timeout
        Seconds to wait, also for the end of a turn.
    """
    from agentmesh.arguments import pairs
    from agentmesh_client.cli.output import Printer

    backend_options = {key: json_or_text(value) for key, value in pairs(backend_option or (), "--backend-option").items()}
    async with session(options, timeout) as mesh:
        done = await mesh.update_agent(
            name,
            backend_options=backend_options,
            labels={key: value or None for key, value in pairs(label or (), "--label").items()},
            budget=json_object(budget, "--budget", BUDGET_EXAMPLE) if budget is not None else None,
            watchdog_s=watchdog,
            restart=restart,
            expect=expect,
            timeout=timeout,
        )
    Printer(options).value(done, _told(name, done))
    return exits.OK


def _told(name: str, done: AgentUpdate) -> str:
    tag = f" (configuration {done.configuration.tag})" if done.configuration is not None else ""
    return f"{name} is changed{tag}" if done.changed else f"{name} was so already{tag}"


def configuration_lines(found: Configuration) -> list[tuple[str, str]]:
    """The lines of `mesh status` about the configuration in force."""
    from agentmesh_client.cli.output import json_text

    restart = found.restart
    labels = ", ".join(f"{key}={value}" for key, value in sorted(found.labels.items()))
    options = "(too large to be shown)" if found.backend_options is None else json_text(found.backend_options)
    return [
        (
            "configuration",
            found.tag + (f", changed {found.sets} times" if found.sets > 1 else ", changed once" if found.sets else ""),
        ),
        ("backend options", options),
        ("budget", json_text(found.budget) if found.budget else "-"),
        ("watchdog", f"{found.watchdog_s:g} s"),
        ("restart", f"{restart.policy}, at most {restart.max} in {restart.within_s:g} s"),
        ("labels", labels or "-"),
    ]


def change_text(change: ChangeEntry) -> str:
    """What was set, in a line."""
    from agentmesh_client.cli.output import json_text

    parts = []
    for name, value in sorted(change.values.items()):
        if name == "backend_options" and isinstance(value, dict):
            parts += [f"{key}={json_text(one)}" for key, one in sorted(value.items())]
        else:
            parts.append(f"{name}={json_text(value)}")
    return "set " + " ".join(parts)
