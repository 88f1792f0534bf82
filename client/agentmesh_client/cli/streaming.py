"""Output of `mesh ask --stream`: the turn's text on stdout as it comes, its actions on stderr, a line each.

Nothing moves the cursor, so a pipe, a file and a terminal get the same; colours are for terminals only.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

import msgspec

from agentmesh.wire import Outcome, encode_outcome
from agentmesh_client.cli.output import Printer, dollars, one_line
from agentmesh_client.streaming import (
    Ended,
    LiveEvent,
    Missed,
    Restarted,
    Retry,
    Started,
    Text,
    ToolResult,
    ToolUse,
)

_INPUT_WIDTH = 80


class Screen:
    """Renders one turn for people. `quiet` leaves out everything but the answer.

    A tool call is one line: its name and input when it begins, its duration when it ends. If something else is printed in
    between, that line ends there, and the duration gets a line of its own.
    """

    def __init__(self, *, quiet: bool, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._quiet = quiet
        self._one_screen = self._out.isatty() and self._err.isatty()
        self._dim = self._err.isatty() and not os.environ.get("NO_COLOR")
        self._began = time.monotonic()
        self._calls: dict[str, tuple[str, float]] = {}
        self._open_call: str | None = None
        self._text_open = False
        self._owner = 0

    def show(self, event: LiveEvent) -> None:
        """Show one event."""
        match event:
            case Text(text=text, retry=retry):
                self._say(text)
                if retry is not None:
                    self._note(f"the model is asked again{_why(retry)}")
            case ToolUse():
                self._calls[event.id] = (event.name, time.monotonic())
                self._note(f"{event.name} {_shown(event.input)}".rstrip(), end="")
                self._open_call = event.id
            case ToolResult():
                self._tool_ended(event)
            case Restarted():
                void = ", what was shown of it is void" if event.void_from < event.n else ""
                self._break_text()
                what = "the answer" if event.owner == self._owner else f"the turn (owner {event.owner})"
                self._owner = event.owner
                self._note(f"{what} begins again{_why(event.retry)}{void}")
            case Started(owner=owner):
                self._owner = owner
            case Missed(count=count):
                self._note(f"{count} live events were lost; the answer is complete all the same")
            case _:
                return

    def end(self, outcome: Outcome, said: str) -> None:
        """Show how it ended. `said` is the text shown so far without void parts; an answer that is not in it is printed."""
        answer = (outcome.text or "").strip()
        if outcome.ok and not said.rstrip().endswith(answer):
            self._break_text()
            self._say(answer)
        self._break_text()
        if not outcome.ok:
            return
        self._note(totals(outcome, time.monotonic() - self._began))

    def break_off(self) -> None:
        """End the current line, so that something else can be printed."""
        self._break_note()
        self._break_text()

    def _say(self, text: str) -> None:
        if not text:
            return
        self._break_note()
        self._out.write(text)
        self._out.flush()
        self._text_open = not text.endswith("\n")

    def _note(self, text: str, end: str = "\n") -> None:
        if self._quiet:
            return
        self._break_note()
        if self._text_open and self._one_screen:
            self._break_text()
        self._err.write(self._dimmed(text) + end)
        self._err.flush()

    def _tool_ended(self, event: ToolResult) -> None:
        name, began = self._calls.pop(event.id, ("a tool", time.monotonic()))
        end = f"  {time.monotonic() - began:.2f} s" + ("" if event.ok else f"  failed: {one_line(event.text)}")
        if self._open_call == event.id and not self._quiet:
            self._open_call = None
            self._err.write(self._dimmed(end) + "\n")
            self._err.flush()
        else:
            self._note(name + end)

    def _break_note(self) -> None:
        """End the line of a tool call that has not ended."""
        if self._open_call is not None and not self._quiet:
            self._err.write("\n")
            self._err.flush()
        self._open_call = None

    def _break_text(self) -> None:
        if self._text_open:
            self._out.write("\n")
            self._out.flush()
            self._text_open = False

    def _dimmed(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self._dim else text


def totals(outcome: Outcome, seconds: float) -> str:
    """A turn's totals: tokens and cost if the backend reported them, and the time that the caller waited."""
    usage = outcome.usage or {}
    parts = [
        f"{usage[key]} tokens {word}"
        for key, word in (("input_tokens", "in"), ("output_tokens", "out"))
        if isinstance(usage.get(key), int | float)
    ]
    cost = usage.get("usd", usage.get("cost_usd"))
    if isinstance(cost, int | float):
        parts.append(dollars(cost))
    return ", ".join([*parts, f"{seconds:.2f} s"])


def print_json(event: LiveEvent, agent: str, ref: str, printer: Printer) -> None:
    """Print an event as a line of JSON."""
    shown = {"v": 1, "agent": agent, "ref": ref, **msgspec.to_builtins(event)}
    if isinstance(event, Ended):
        shown["outcome"] = msgspec.Raw(encode_outcome(event.outcome))
    printer.value(shown, "")
    sys.stdout.flush()


def _why(retry: Retry | None) -> str:
    """Why a model is asked again, and when."""
    if retry is None:
        return ""
    soon = "" if retry.after_s is None else f" in {retry.after_s:.1f} s"
    return f"{soon} ({retry.reason})"


def _shown(value: object) -> str:
    if not value:
        return ""
    return one_line(msgspec.json.encode(value).decode(), _INPUT_WIDTH)
