"""A coordinator that has a log read by several readers at once, and answers with what they found.

    mesh up examples/triage/agents.py
    mesh start triage --kind Triage
    mesh ask triage "What went wrong this morning?"

`Triage` plans from the log, starts a `Reader` for each service in trouble, gathers their answers as events, prompts itself with
all of them, and only then answers its caller. Nothing in it waits: between two callbacks it is a record in its journal, and any
node can go on with it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from stand_in import lines_of, read, triage

from agentmesh import Agent, Answer, Defer, Idle, Init, Proceed, Prompt, Undelivered
from agentmesh.backend import Response

PLAN = """{question}

Below is a log. Name the services that report errors, at most three, the worst first: one line for each, its name first.

{log}"""
READ = """These are all lines of the service {service} in a log. Say in one line when its errors began and ended, how many there
are, what most of them say, and what happened just before and just after.

{lines}"""
SYNTHESIS = """{question}

Your readers have found this. Answer from it: what happened in which order, and where to look first.

{findings}"""


class Job(msgspec.Struct):
    """What the coordinator remembers."""

    log: str
    readers: str
    question: str = ""
    ref: str = ""
    """The caller's request, open until the synthesis."""
    planned: list[str] = []
    findings: dict[str, str] = {}


class Triage(Agent[Job]):
    """Answers a question about the log named by the option `log`. The option `readers` names the readers' backend."""

    backend = "scripted"
    script = staticmethod(triage)

    async def init_agent(self, options: dict[str, Any]) -> Init[Job]:
        shipped = Path(__file__).with_name("app.log")
        return Init(Job(log=options.get("log", str(shipped)), readers=options.get("readers", "scripted")))

    async def pre_turn(self, prompt: str, state: Job) -> Proceed[Job]:
        if self.request.label == "synthesis":
            return Proceed(prompt, state)
        log = await asyncio.to_thread(Path(state.log).read_text)
        return Proceed(PLAN.format(question=prompt, log=log), msgspec.structs.replace(state, question=prompt))

    async def handle_response(self, ref: str, response: Response, state: Job) -> Idle[Job] | Defer[Job]:
        if self.request.label == "synthesis":
            self.reply(state.ref, response.text)
            return Idle(msgspec.structs.replace(state, ref="", planned=[], findings={}))
        lines = lines_of(await asyncio.to_thread(Path(state.log).read_text))
        known = {line.service for line in lines}
        planned = [word for row in response.text.splitlines() if (word := row.partition(":")[0].strip()) in known]
        if not planned:
            return Idle(state)
        for service in planned:
            reader = f"{self.name}.{service}"
            own = "\n".join(" ".join(line) for line in lines if line.service == service)
            self.start_agent(reader, kind="Reader", backend=state.readers, if_exists="use", link=True)
            self.tell(reader, READ.format(service=service, lines=own), tag=service)
        return Defer(msgspec.structs.replace(state, ref=ref, planned=planned, findings={}), exclusive=True)

    async def handle_event(self, event: Any, state: Job) -> Idle[Job] | Prompt[Job]:
        match event:
            case Answer(tag=service, outcome=outcome) if outcome.ok:
                found = outcome.text or ""
            case Answer(tag=service, outcome=outcome):
                found = f"{service}: its reader failed ({outcome.error})"
            case Undelivered(effect={"tag": str(service)}, error=error):
                found = f"{service}: its reader cannot be reached ({error.code})"
            case _:
                return Idle(state)
        findings = {**state.findings, service: found}
        state = msgspec.structs.replace(state, findings=findings)
        if len(findings) < len(state.planned):
            return Idle(state)
        text = SYNTHESIS.format(question=state.question, findings="\n".join(findings[service] for service in state.planned))
        return Prompt(text, state, label="synthesis")


class Reader(Agent[None]):
    """Reads the lines that it is given. It keeps nothing."""

    backend = "scripted"
    script = staticmethod(read)

    async def init_agent(self, options: dict[str, Any]) -> Init[None]:
        return Init(None)

    async def handle_response(self, ref: str, response: Response, state: None) -> Idle[None]:
        return Idle(state)
