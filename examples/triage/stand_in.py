"""What stands in for a model in this example: functions of the prompt, with the pace of one.

They read what the agents write to a model, log lines included, so the answers follow the log: give another log and they differ.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from agentmesh import Event
from agentmesh_node.backends.scripted import Delay

type Answer = list[Event | Delay]

TROUBLE = ("ERROR", "FATAL")
MOST = 3
"""Most services that a plan names, as its prompt asks."""
_LINE = re.compile(r"^(?P<time>\S+T\S+)\s+(?P<level>[A-Z]+)\s+(?P<service>\S+)\s+(?P<text>.+)$", re.MULTILINE)
_VARIABLE = re.compile(r"req=\w+ |\d+(?:[.,]\d+)*")
_FINDING = re.compile(
    r"^(?P<service>\S+): (?P<count>\d+) errors, (?P<first>\S+) to (?P<last>[^.\s]+)\. (?P<rest>.+)$", re.MULTILINE
)


class Line(NamedTuple):
    """One line of a log."""

    time: str
    level: str
    service: str
    text: str

    @property
    def clock(self) -> str:
        return self.time[11:19]

    @property
    def shape(self) -> str:
        """The text without what differs from one request to the next."""
        return _VARIABLE.sub("", self.text).strip()


async def triage(prompt: str) -> Answer:
    """The coordinator's model: a plan of a log, or the synthesis of findings."""
    findings = list(_FINDING.finditer(prompt))
    return speak(synthesis(findings), 1.5) if findings else speak(plan(lines_of(prompt)), 1.0)


async def read(prompt: str) -> Answer:
    """A reader's model: what became of one service. It takes longer over more lines."""
    lines = lines_of(prompt)
    return speak(finding(lines), 1.0 + 0.04 * len(lines))


def lines_of(text: str) -> list[Line]:
    """The log lines in `text`."""
    return [Line(*match.groups()) for match in _LINE.finditer(text)]


def plan(lines: list[Line]) -> str:
    """The services with most errors, worst first."""
    errors = Counter(line.service for line in lines if line.level in TROUBLE)
    if not errors:
        return "No service reports errors."
    return "\n".join(f"{service}: {count} errors" for service, count in errors.most_common(MOST))


def finding(lines: list[Line]) -> str:
    """When a service's errors began and ended, what they mostly were, and which unusual line stands just before and after."""
    bad = [line for line in lines if line.level in TROUBLE]
    if not bad:
        return "This service reports no errors."
    shapes = Counter(line.shape for line in lines)
    common, times = Counter(line.shape for line in bad).most_common(1)[0]
    example = next(line for line in bad if line.shape == common)
    unusual = [line for line in lines if shapes[line.shape] == 1 and line not in bad]
    before = [line for line in unusual if line.time < bad[0].time]
    after = [line for line in unusual if line.time > bad[-1].time]
    said = [
        f"{bad[0].service}: {len(bad)} errors, {bad[0].clock} to {bad[-1].clock}.",
        f"{times} times: {example.text.partition(' ')[2] if example.text.startswith('req=') else example.text}.",
    ]
    if before:
        said.append(f"Before it, at {before[-1].clock}: {'; '.join(line.text for line in before[-2:])}.")
    if after:
        said.append(f"After it, at {after[0].clock}: {after[0].text}.")
    return " ".join(said)


def synthesis(findings: list[re.Match[str]]) -> str:
    """All findings in the order in which the troubles began, and where to look first."""
    ordered = sorted(findings, key=lambda found: found["first"])
    worst = max(findings, key=lambda found: int(found["count"]))
    total = sum(int(found["count"]) for found in findings)
    services = f"{len(ordered)} service{'s' if len(ordered) > 1 else ''}"
    head = f"{total} errors in {services}, {ordered[0]['first']} to {max(f['last'] for f in ordered)}:"
    body = [f"{n}. {f['service']} ({f['count']} errors from {f['first']}). {f['rest']}" for n, f in enumerate(ordered, 1)]
    return "\n".join([head, *body, f"Look at {worst['service']} first: it failed most often."])


def speak(text: str, seconds: float) -> Answer:
    """`text` as a model would give it: a pause, then piece by piece."""
    pieces = text.splitlines(keepends=True)
    steps: Answer = [Delay(seconds * 0.6)]
    for piece in pieces:
        steps += [Delay(seconds * 0.4 / len(pieces)), Event.text(piece)]
    return [*steps, Event.usage(input_tokens=0, output_tokens=len(text.split())), Event.result(text)]
