"""A `Rig` whose prompt tasks take steps and ask other agents, and which watches what the mesh promises about that.

Whatever happens: a step that was acknowledged is there when its turn is tried again, each as it was; a wait has one outcome for
ever, and its request one origin.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from agentmesh.records import Inner, SendMail, Wait
from agentmesh.turn.step_values import AskAgent, StepTaken, TakeStep, WaitOver
from agentmesh.turn.values import Arrived, Command, GaveUp, RunTurn
from agentmesh.wire import ErrorBody, Mail, Outcome, PromptBody
from mesh.turn.harness import Rig


def answer_of(agent: str, text: str) -> Outcome:
    return Outcome(agent=agent, ref="1", ok=True, text=text)


class Stepping(Rig):
    """A bench for steps and waits."""

    def __init__(self, *args: Any, **more: Any) -> None:
        self.taken: dict[str, StepTaken] = {}
        """Answers to steps, by token."""
        self.over: dict[str, Outcome] = {}
        """Outcomes of the running turn's waits, as it was told them."""
        self.acknowledged: dict[str, list[bytes]] = {}
        """Per turn: the steps that it was told are committed."""
        self.outcomes_of_waits: dict[tuple[str, str], Outcome] = {}
        self._wanted: dict[str, bytes] = {}
        super().__init__(*args, **more)

    # --- the prompt task --------------------------------------------------------------------------------------------
    def take(self, value: Any, inner: Inner | None = None) -> str:
        """The running turn takes a step, which has the result of the call `inner`; returns its token."""
        token = f"step{len(self._wanted)}"
        raw = msgspec.json.encode(value)
        self._wanted[token] = raw
        self.feed(TakeStep(self.running().number, token, Raw(raw), inner))
        return token

    def ask(self, wait: str, agent: str = "helper", prompt: str = "help", seconds: float = 60.0) -> None:
        """The running turn waits for another agent."""
        body, deadline = PromptBody(prompt=prompt), self.now + seconds
        self.feed(AskAgent(turn=self.running().number, wait=wait, agent=agent, prompt=body, deadline=deadline))

    # --- the other agents -------------------------------------------------------------------------------------------
    def request(self, wait: str) -> tuple[str, SendMail]:
        """The request that was mailed for a wait: origin, effect."""
        found = [(o, e) for o, e in self.performed.items() if isinstance(e, SendMail) and e.wait == wait]
        assert len(found) == 1, f"{len(found)} requests for {wait}"
        return found[0]

    def answer_wait(self, wait: str, text: str = "answer", **fields: Any) -> Mail:
        """Whom a wait waits for answers."""
        origin, request = self.request(wait)
        return self.answer_to(origin, request.to, text, **fields)

    def answer_to(self, origin: str, agent: str, text: str, *, deliver: bool = True, **fields: Any) -> Mail:
        """An answer on its way back; without `deliver` the owner does not hear of it yet."""
        headers: dict[str, Any] = {
            "sender": agent,
            "tag": origin,
            "origin": f"1.{self.seq + 1}.0",
            "for_life": self._life,
            **fields,
        }
        mail = self.post("peer-answer", event=msgspec.to_builtins(answer_of(agent, text)), **headers)
        if deliver:
            self.feed(Arrived((mail,)))
        return mail

    def refuse(self, wait: str, code: str = "not_found") -> None:
        """The request of a wait cannot be delivered."""
        origin = self.wait(wait).origin
        self.undone.pop(origin)
        self.feed(GaveUp(origin, ErrorBody(code=code)))

    # --- looking ----------------------------------------------------------------------------------------------------
    def wait(self, name: str) -> Wait:
        """A wait as the journal has it."""
        return self.core.ledger.waits[name]

    @property
    def steps(self) -> list[Any]:
        """The steps in the journal."""
        steps = self.core.ledger.steps
        return [msgspec.json.decode(steps[index].value) for index in sorted(steps, key=int)]

    def given(self) -> list[Any]:
        """The steps that the running turn was given at its start."""
        return [msgspec.json.decode(step) for step in self.running().steps]

    def _perform(self, command: Command) -> None:
        if isinstance(command, RunTurn):
            self.over = {}
            given = [bytes(step) for step in command.steps]
            told = self.acknowledged.get(command.key, [])
            assert given[: len(told)] == told, "a step that was acknowledged is gone"
            self.acknowledged[command.key] = given
        super()._perform(command)

    def _note(self, command: Command) -> None:
        match command:
            case StepTaken(token=token, error=error):
                assert token not in self.taken, "a step was answered twice"
                self.taken[token] = command
                if error is None and self.task is not None:  # else its task has ended without waiting for it
                    told = self.acknowledged[self.running().key]
                    told.append(self._wanted[token])
                    assert len(told) == command.steps
            case WaitOver(wait=name, outcome=outcome):
                if self.task is None:
                    return  # it has ended without waiting for it
                key = self.running().key, name
                assert self.outcomes_of_waits.setdefault(key, outcome) == outcome, "a wait with two outcomes"
                self.over[name] = outcome
            case _:
                super()._note(command)

    def rested(self) -> None:
        """Nothing of a turn is left when it is over."""
        ledger = self.core.ledger
        assert (ledger.turning, ledger.steps, ledger.waits, self.core.answered) == (None, {}, {}, ())
