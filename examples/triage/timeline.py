"""What the demo shows: the mesh's own events as lines with the time since the start, and at the end who talked to whom."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from typing import Any

import msgspec

from agentmesh.edge.transport import Message

_BOLD, _RED, _DIM, _PLAIN = "\033[1m", "\033[31m", "\033[2m", "\033[0m"


class Timeline:
    """Prints as things happen, and keeps what the demo's end must prove."""

    def __init__(self, coordinator: str) -> None:
        self._began = time.monotonic()
        self._colour = self.colour()
        self._coordinator = coordinator
        self._tries: Counter[tuple[str, str]] = Counter()
        self._killed_at: float | None = None
        self._sent: set[tuple[str, str, str, str]] = set()
        self._started: set[str] = set()
        self.edges: Counter[tuple[str, str, str]] = Counter()
        """(from, to, what) of all mail between agents."""
        self.homes: dict[str, list[str]] = {}
        """The nodes that have run each agent, in order."""
        self.outcomes: list[bytes] = []
        """Every outcome stored for the coordinator: there must be one."""
        self.takeover_s: float | None = None
        """From the kill to the coordinator's activation elsewhere."""
        self.readers_busy = asyncio.Event()
        """All readers that the coordinator has asked so far run a turn."""
        self.answered = asyncio.Event()
        """The outcome of the caller's request is stored."""
        self.request = ""
        """The request as a tree of what was done for it."""

    @staticmethod
    def colour() -> bool:
        """Whether the terminal is to be told how to draw."""
        return sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def say(self, who: str, what: str, style: str = "") -> None:
        line = f"{time.monotonic() - self._began:7.2f} s  {who:<28} {what}"
        print(f"{style}{line}{_PLAIN}" if style and self._colour else line, flush=True)

    def kill(self, node: str, agents: list[str]) -> None:
        """Note that `node` is killed now."""
        self._killed_at = time.monotonic()
        self.say("SIGKILL", f"{node} dies, and with it {', '.join(agents)}", _BOLD + _RED)

    def on_outcome(self, message: Message) -> None:
        """One outcome of the coordinator, as it was stored."""
        self.outcomes.append(message.data)
        self.answered.set()

    def on_event(self, message: Message) -> None:
        """One `mesh.event.<agent>.<kind>`."""
        event: dict[str, Any] = msgspec.json.decode(message.data)
        handler = getattr(self, f"_on_{event['kind']}", None)
        if handler is not None:
            handler(event["agent"], event.get("node", "?"), event)

    def _on_started(self, agent: str, node: str, event: dict[str, Any]) -> None:
        self.say(agent, f"begins its life on {node}")

    def _on_activated(self, agent: str, node: str, event: dict[str, Any]) -> None:
        homes = self.homes.setdefault(agent, [])
        if homes and homes[-1] != node and self._killed_at is not None:
            after = time.monotonic() - self._killed_at
            if agent == self._coordinator and self.takeover_s is None:
                self.takeover_s = after
            self.say(agent, f"goes on on {node}, {after:.2f} s after the kill", _BOLD)
        if homes[-1:] != [node]:
            homes.append(node)

    def _on_prompt_start(self, agent: str, node: str, event: dict[str, Any]) -> None:
        self._tries[agent, str(event["ref"])] += 1
        again = " again" if self._tries[agent, str(event["ref"])] > 1 else ""
        self.say(agent, f"runs turn {event['turn']}{again} on {node}", _DIM)
        self._started.add(agent)
        asked = {to for source, to, what in self.edges if source == self._coordinator and what == "prompt"}
        if asked and asked <= self._started:
            self.readers_busy.set()

    def _on_sent(self, agent: str, node: str, event: dict[str, Any]) -> None:
        what = "answer" if event["answer"] else "prompt" if event["lane"] == "peer-inbox" else "event"
        mail = (agent, event["to"], what, str(event["tag"]))
        verb = {"answer": "answers", "prompt": "asks", "event": "notifies"}[what]
        if mail in self._sent:  # its sender died before it knew that this was done: the receiver drops the second copy
            self.say(f"{agent} -> {event['to']}", f"{verb} once more, to be sure: dropped as a duplicate", _DIM)
            return
        self._sent.add(mail)
        self.edges[mail[:3]] += 1
        self.say(f"{agent} -> {event['to']}", verb)

    def graph(self) -> str:
        """The agents as a tree of who asked whom, with the nodes that ran each and the mail that went along each edge."""
        rows = ["caller", self._row("└─ ", "caller", self._coordinator)]
        workers = sorted({to for source, to, what in self.edges if source == self._coordinator and what == "prompt"})
        for worker in workers:
            branch = "└─ " if worker == workers[-1] else "├─ "
            rows.append(self._row("   " + branch, self._coordinator, worker))
        return "\n".join(rows)

    def _row(self, branch: str, parent: str, agent: str) -> str:
        answers = len(self.outcomes) if parent == "caller" else self.edges[agent, parent, "answer"]
        prompts = 1 if parent == "caller" else self.edges[parent, agent, "prompt"]
        homes = " then ".join(self.homes.get(agent, ["?"]))
        return f"{branch + agent:<28} on {homes:<12} prompts {prompts}, answers {answers}"
