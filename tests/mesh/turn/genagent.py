"""A small model of GenAgent, written from its documentation and not from the turn machine, with the decisions of the mesh.

It knows no journal, no commands and no phases: an agent is a log (its state), a mailbox, and what runs. The agent under test,
`Scripted`, does what its inputs say, so that model and machine can be given the same script. A prompt's text is
`<pre_turn><handle_response><handle_error>:<name>`, one letter each; an event is `{"do": ..., "n": ...}`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agentmesh.agent import Closed, Defer, Halt, Idle, Proceed, Prompt, Skip, Undelivered
from agentmesh.backend import Response
from mesh.turn.harness import Plain

PRE = "pshr"
"""proceed, skip, halt, raise"""
RESPONSE = "ichdxkb"
"""idle, chain, halt, defer, exclusive defer, crash, bad return"""
ERROR = "irhe"
"""idle, retry, halt, raise"""
MAX_ATTEMPTS = 2


def follow_up(text: str, letter: str) -> str:
    """The text of a chained prompt or a retry: in the end it idles."""
    return f"pii:{text.partition(':')[2]}.{letter}"


class Scripted(Plain):
    """Does what its prompts and events say, and logs it."""

    def pre_turn(self, prompt: str, state: list[Any]) -> Any:
        self.__dict__["running"] = prompt
        match prompt[0]:
            case "s":
                return Skip([*state, f"skip {prompt}"])
            case "h":
                return Halt([*state, f"refuse {prompt}"])
            case "r":
                raise RuntimeError("pre_turn")
        return Proceed(prompt, [*state, f"pre {prompt}"])

    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        text = response.text
        self.notify("monitor", f"resp {text}")
        state = [*state, f"resp {text}"]
        match text[1]:
            case "c":
                return Prompt(follow_up(text, "c"), state)
            case "h":
                return Halt(state)
            case "d" | "x":
                return Defer(state, exclusive=text[1] == "x")
            case "k":
                raise RuntimeError("crash")
            case "b":
                return "nonsense"
        return Idle(state)

    def handle_error(self, ref: str, error: Any, state: list[Any]) -> Any:
        text = self.__dict__["running"]
        state = [*state, f"err {error.code}"]
        match text[2]:
            case "r":
                return Prompt(follow_up(text, "r"), state)
            case "h":
                return Halt(state)
            case "e":
                raise RuntimeError("handle_error")
        return Idle(state)

    def post_turn(self, outcome: Any, ref: str, state: list[Any]) -> Any:
        return [*state, f"post {ref} {outcome.ok}"]

    def post_run(self, state: list[Any]) -> Any:
        self.notify("monitor", "post_run")

    def handle_event(self, event: Any, state: list[Any]) -> Any:
        if isinstance(event, Undelivered):
            return Idle([*state, f"undelivered {event.effect['target']}"])
        if isinstance(event, Closed):
            return Idle([*state, f"closed {event.ref} {event.how}"])
        state = [*state, f"event {event['n']}"]
        match event["do"]:
            case "prompt":
                return Prompt(event["text"], state)
            case "halt":
                return Halt(state)
            case "raise":
                raise RuntimeError("handle_event")
            case "reply":
                self.reply(event["ref"], f"reply {event['n']}")
        return Idle(state)


@dataclass
class Item:
    """A prompt that waits or runs."""

    ref: str
    text: str
    called: bool = True
    """Somebody waits for its outcome."""
    mail: bool = True
    deadline: float | None = None
    crashes: int = 0
    chained: bool = False
    order: int = 0
    """When it was queued."""


@dataclass
class Model:
    """What a GenAgent would be, after the same inputs."""

    log: list[str] = field(default_factory=list)
    mailbox: list[Item] = field(default_factory=list)
    chain: Item | None = None
    current: Item | None = None
    draft: list[str] = field(default_factory=list)
    """The log as the running turn has it."""
    events: list[dict[str, Any]] = field(default_factory=list)
    halted: bool = False
    deferred: dict[str, bool] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    """Per ref: the answer's text, or `!` and the error's code."""
    post_runs: int = 0
    minted: int = 0
    queued: int = 0

    # --- inputs -----------------------------------------------------------------------------------------------------
    def prompt(self, ref: str, text: str, now: float, deadline: float | None = None) -> None:
        self._queue(Item(ref, text, deadline=deadline))
        self.dispatch(now)

    def event(self, event: dict[str, Any], now: float) -> None:
        if self.current is not None:
            self.events.append(event)
        else:
            self.log = self._handle(event, self.log)
            self.dispatch(now)

    def finish(self, now: float) -> None:
        """The backend answers with the prompt's text."""
        item, response = self._running(), f"resp {self._running().text}"
        decision = item.text[1]
        if decision == "k":
            self._crash(item, now)
            return
        if decision == "b":
            self._end(item, "i", self.log, "!bad_return", now)
            return
        if decision == "x" and any(self.deferred.values()):
            self._end(item, "i", self.log, "!bad_return", now)
            return
        deferred = decision in "dx" and item.called
        if deferred:
            self.deferred[item.ref] = decision == "x"
        self._end(item, decision, [*self.draft, response], None if deferred else item.text, now)

    def fail(self, code: str, now: float) -> None:
        item = self._running()
        decision = item.text[2]
        log = self.draft if decision == "e" else [*self.draft, f"err {code}"]
        self._end(item, decision, log, f"!{code}", now)

    def cancel(self, ref: str, now: float) -> bool:
        if self.close(ref, "!cancelled", "cancelled", now):
            return True
        for item in [*self.mailbox, self.chain]:
            if item is not None and item.ref == ref:
                self._remove(item)
                self._answer(item, "!cancelled")
                return True
        return False

    def close(self, ref: str, outcome: str, how: str, now: float) -> bool:
        """A deferred request is ended from outside; the agent is told ahead of the events that wait."""
        if ref not in self.deferred:
            return False
        del self.deferred[ref]
        self.outcomes[ref] = outcome
        event = {"do": "close", "ref": ref, "how": how}
        if self.current is None:
            self.log = self._handle(event, self.log)
            self.dispatch(now)
        else:
            told = sum(waiting["do"] == "close" for waiting in self.events)
            self.events.insert(told, event)
        return True

    def expire(self, now: float) -> None:
        for item in [i for i in self.mailbox if i.deadline is not None and i.deadline <= now]:
            self._remove(item)
            self._answer(item, "!expired")

    def resume(self, now: float) -> bool:
        was, self.halted = self.halted, False
        if was:
            self.dispatch(now)
        return was

    def stop(self) -> None:
        for item in [*self.mailbox, self.chain, self.current]:
            if item is not None:
                self._answer(item, "!stopped")
        for ref in self.deferred:
            self.outcomes[ref] = "!stopped"

    def taken_over(self, now: float) -> None:
        """The owner died: the turn begins anew, after the events that it had put off."""
        self._put_back()
        events, self.events = self.events, []
        for event in events:
            self.log = self._handle(event, self.log)
        self.dispatch(now)

    # --- mechanics ----------------------------------------------------------------------------------------------------
    def dispatch(self, now: float) -> None:
        while self.current is None and not self.halted:
            item = self._choose()
            if item is None:
                return
            self._remove(item)
            if item.deadline is not None and item.deadline <= now:
                self._answer(item, "!expired")
                continue
            match item.text[0]:
                case "s":
                    self.log = [*self.log, f"skip {item.text}"]
                    self._answer(item, "!pre_turn_skipped")
                case "r":
                    self._answer(item, "!pre_turn_skipped")
                case "h":
                    self.log = [*self.log, f"refuse {item.text}"]
                    self._answer(item, "!pre_turn_halted")
                    self._halt()
                case _:
                    self.current, self.draft = item, [*self.log, f"pre {item.text}"]

    def _choose(self) -> Item | None:
        if self.chain is not None:
            return self.chain
        held = any(self.deferred.values())
        return next((i for i in self.mailbox if not (held and i.mail)), None)

    def _end(self, item: Item, decision: str, log: list[str], outcome: str | None, now: float) -> None:
        retried = decision == "r" and item.called and outcome != "!interrupted"
        if decision in "cr":
            ref = item.ref if retried else self._mint()
            self.chain = Item(ref, follow_up(item.text, decision), called=retried, mail=False, chained=True)
        ok = outcome is None or not outcome.startswith("!")
        self.log = [*log, f"post {item.ref} {ok}"]
        if decision == "h":
            self._halt()
        events, self.events = self.events, []
        for event in events:
            self.log = self._handle(event, self.log)
        if outcome is not None and not retried:
            self._answer(item, outcome)
        self.current = None
        self.dispatch(now)

    def _handle(self, event: dict[str, Any], log: list[str]) -> list[str]:
        match event["do"]:
            case "raise":
                return log
            case "close":
                return [*log, f"closed {event['ref']} {event['how']}"]
            case "prompt":
                self._queue(Item(self._mint(), event["text"], called=False, mail=False))
            case "halt":
                self._halt()
            case "reply" if event["ref"] in self.deferred:
                del self.deferred[event["ref"]]
                self.outcomes[event["ref"]] = f"reply {event['n']}"
        return [*log, f"event {event['n']}"]

    def _crash(self, item: Item, now: float) -> None:
        item.crashes += 1
        if item.crashes >= MAX_ATTEMPTS:
            self._answer(item, "!failed")
            self.current = None
        else:
            self._put_back()
        # A restart is like any way of becoming idle: what was put off comes first.
        events, self.events = self.events, []
        for event in events:
            self.log = self._handle(event, self.log)
        self.dispatch(now)

    def _put_back(self) -> None:
        item, self.current = self.current, None
        if item is not None and item.chained:
            self.chain = item
        elif item is not None:
            self.mailbox = sorted([*self.mailbox, item], key=lambda i: i.order)

    def _remove(self, item: Item) -> None:
        if item is self.chain:
            self.chain = None
        else:
            self.mailbox.remove(item)

    def _queue(self, item: Item) -> None:
        self.queued += 1
        item.order = self.queued
        self.mailbox.append(item)

    def _answer(self, item: Item, outcome: str) -> None:
        if item.called:
            assert item.ref not in self.outcomes, "the model itself answers twice"
            self.outcomes[item.ref] = outcome

    def _halt(self) -> None:
        if not self.halted:
            self.halted = True
            self.post_runs += 1

    def _mint(self) -> str:
        self.minted += 1
        return f"c{self.minted}"

    def _running(self) -> Item:
        assert self.current is not None
        return self.current
