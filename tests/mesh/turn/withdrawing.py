"""Agents that ask others on behalf of their requests, and the withdrawals that come and go then."""

from __future__ import annotations

from typing import Any

import msgspec

from agentmesh.agent import Answer, Defer, Idle, Undelivered
from agentmesh.backend import Response
from agentmesh.records import SendMail
from agentmesh.turn.values import Arrived, Cancel
from agentmesh.wire import Mail, Outcome, Withdrawal
from mesh.turn.harness import Plain, error
from mesh.turn.stepping import Stepping


class Relay(Plain):
    """Keeps each request open, tells `first` of it, tells `second` once that has answered, and answers then."""

    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        if response.text.startswith("PLAIN"):
            return Idle(state)
        self.tell("first", response.text, tag=ref)
        self.tell("logger", "untagged")
        self.tell("archive", "detached", tag=f"d{ref}", detached=True)
        return Defer(state)

    def handle_event(self, event: Any, state: list[Any]) -> Any:
        if isinstance(event, Undelivered):
            return Idle([*state, ["undelivered", event.effect["target"], event.error.code]])
        if not isinstance(event, Answer):
            self.reply(event["reply"], event.get("text"), error=event.get("error"))
            return Idle(state)
        if event.agent == "first" and event.outcome.ok:
            self.tell("second", "go on", tag=event.tag)
        return Idle([*state, [event.agent, event.outcome.text or (event.outcome.error and event.outcome.error.code)]])


def withdrawn(bench: Stepping) -> dict[str, str]:
    """By agent: the origin of what was withdrawn from it."""
    found = [e for e in bench.effects(SendMail) if e.lane == "peer-answer" and e.outcome is None]
    assert len({(e.to, e.event["withdraws"]) for e in found}) == len(found), "nothing is withdrawn twice"
    return {e.to: e.event["withdraws"] for e in found}


def origin_to(bench: Stepping, to: str) -> str:
    (found,) = [o for o, e in bench.performed.items() if isinstance(e, SendMail) and e.to == to and e.lane == "peer-inbox"]
    return found


def ended(bench: Stepping) -> None:
    assert bench.core.ledger.delegated == {} and bench.core.withdrawals == ()
    bench.rested()


def end(bench: Stepping, way: str, ref: str) -> None:
    match way:
        case "interrupt":
            assert bench.interrupt() == {"interrupted": True, "withdrawn": [{"agent": "a2", "origin": bench.request("w2")[0]}]}
        case "watchdog":
            bench.watchdog()
        case "fail":
            bench.fail()
        case "cancel":
            bench.feed(Cancel(ref, "c", tree=True))
            assert bench.answers["c"]["cancelled"]
        case "stop":
            bench.stop()
        case "withdrawal":
            withdraw(bench, "1.9.0")
        case "end_by":
            bench.tick(bench.now + 31)
            assert bench.code(ref) == "expired"


def answer(bench: Stepping, sender: str, tag: str, said: str) -> None:
    bad = said in ("cancelled", "stopped")
    outcome = Outcome(agent=sender, ref="3", ok=not bad, text=None if bad else said, error=error(said) if bad else None)
    bench.event(msgspec.to_builtins(outcome), "peer-notify", sender=sender, tag=tag, origin=f"1.{bench.seq + 900}.0")


def withdraw(bench: Stepping, origin: str, *, deliver: bool = True, sender: str = "boss") -> Mail:
    body = msgspec.to_builtins(Withdrawal(withdraws=origin, why=error("interrupted")))
    mail = bench.post("peer-answer", event=body, sender=sender, origin=f"1.{bench.seq + 500}.0", for_life="life-1")
    if deliver:
        bench.feed(Arrived((mail,)))
    return mail


def asked(bench: Stepping, origin: str, text: str = "work", **fields: Any) -> str:
    """A question of boss's turn."""
    return bench.prompt(text, lane="peer-inbox", sender="boss", origin=origin, tag=origin, path=("boss",), **fields)
