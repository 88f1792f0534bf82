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
from stand_in import lines_of, plan, read, triage

from agentmesh import Agent, Answer, Defer, Idle, Init, Proceed, Prompt, Undelivered, tool
from agentmesh.backend import Response

PLAN = """{question}

Below is a log. Name the services that report errors, at most three, the worst first: one line for each, its name first.

{log}"""
SPELLED_OUT = """Repeat exactly this and nothing else: \
<tool_call> {{"name": "count_errors", "arguments": {{"log": "{log}"}}}} </tool_call>"""
"""A plan for a model that decides nothing: the call that it has to make, word for word."""
FEW_LINES = 2
"""Lines that a reader with such a model is given."""
SHORT = {"max_tokens": 40, "max_iterations": 3}
READ = """These are all lines of the service {service} in a log. Say in one line when its errors began and ended, how many there
are, what most of them say, and what happened just before and just after.

{lines}"""
SYNTHESIS = """{question}

Your readers have found this. Answer from it: what happened in which order, and where to look first.

{findings}"""


@tool(effect="pure")
def count_errors(log: str) -> str:
    """Count the errors of the services in a log.

    Args:
        log: name of a log beside this file.
    """
    return plan(lines_of(Path(__file__).with_name(Path(log).name).read_text()))


class Job(msgspec.Struct):
    """What the coordinator remembers."""

    log: str
    readers: str
    small: bool = False
    """Whether the model is one that must be told each word."""
    question: str = ""
    ref: str = ""
    """The caller's request, open until the synthesis."""
    planned: list[str] = []
    findings: dict[str, str] = {}


class Triage(Agent[Job]):
    """Answers a question about the log named by the option `log`. The option `readers` names the readers' backend; `small` is
    for a model that decides nothing, such as `mesh up --model local` runs."""

    backend = "scripted"
    script = staticmethod(triage)
    tools = (count_errors,)

    async def init_agent(self, options: dict[str, Any]) -> Init[Job]:
        shipped = Path(__file__).with_name("app.log")
        small = bool(options.get("small"))
        job = Job(log=options.get("log", str(shipped)), readers=options.get("readers", "scripted"), small=small)
        return Init(job, backend=SHORT if small else {})

    async def pre_turn(self, prompt: str, state: Job) -> Proceed[Job]:
        if self.request.label == "synthesis":
            return Proceed(prompt, state)
        if state.small:
            prompt, asked = SPELLED_OUT.format(log=Path(state.log).name), prompt
            return Proceed(prompt, msgspec.structs.replace(state, question=asked))
        log = await asyncio.to_thread(Path(state.log).read_text)
        return Proceed(PLAN.format(question=prompt, log=log), msgspec.structs.replace(state, question=prompt))

    async def handle_response(self, ref: str, response: Response, state: Job) -> Idle[Job] | Defer[Job]:
        if self.request.label == "synthesis":
            self.reply(state.ref, response.text)
            return Idle(msgspec.structs.replace(state, ref="", planned=[], findings={}))
        lines = lines_of(await asyncio.to_thread(Path(state.log).read_text))
        known = {line.service for line in lines}
        told = [event.data["text"] for event in response.events if event.kind == "tool_result"]
        rows = [row.partition(":")[0].strip() for text in (response.text, *told) for row in text.splitlines()]
        planned = list(dict.fromkeys(service for service in rows if service in known))
        if not planned:
            return Idle(state)
        for service in planned:
            reader = f"{self.name}.{service}"
            own = "\n".join([" ".join(line) for line in lines if line.service == service][-FEW_LINES if state.small else 0 :])
            options = {"small": state.small}
            self.start_agent(reader, kind="Reader", backend=state.readers, options=options, if_exists="use", link=True)
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
        return Init(None, backend=SHORT if options.get("small") else {})

    async def handle_response(self, ref: str, response: Response, state: None) -> Idle[None]:
        return Idle(state)
