"""Requests of a caller in another account that are answered late, each in every way that an answer takes."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from access_kit.place import SUBJECTS, Place
from access_kit.raw import Raw


class Late(NamedTuple):
    """The requests to one agent whose turn ends when its gate opens."""

    agent: str
    gate: Path
    asked: float
    inboxes: dict[str, str]
    """Where each answer is awaited, by its way: `ask`, `again` (a repetition by the same id), `address` (`Mesh-Reply-To`) and
    `control` (a request that waits for the end of the turn)."""


async def ask_late(caller: Raw, agent: str, gate: Path) -> Late:
    """Send them all to an agent that is idle."""
    body = f"gate:{gate} late".encode()
    to = {way: caller.inbox() for way in ("ask", "again", "address", "control")}
    named = {"Nats-Msg-Id": f"{agent}.late"}
    asked = time.monotonic()
    caller.publish(SUBJECTS.ask(agent), body, {**named, "Mesh-Reply-To": to["address"]}, reply=to["ask"])
    await _in_a_turn(caller, agent)
    caller.publish(SUBJECTS.ask(agent), body, named, reply=to["again"])
    change = {"id": "late", "set": {"restart": {"policy": "transient", "max": 3, "within_s": 60}}}
    caller.publish(f"{SUBJECTS.root}.live.control-set.{agent}", json.dumps(change).encode(), reply=to["control"])
    await caller.flush()
    return Late(agent, gate, asked, to)


async def _in_a_turn(caller: Raw, agent: str) -> None:
    async with asyncio.timeout(60):
        while True:
            inbox = caller.inbox()
            caller.publish(f"{SUBJECTS.root}.live.control-status.{agent}", b"", reply=inbox)
            await caller.until(lambda inbox=inbox: answer(caller, inbox) is not None)
            if (answer(caller, inbox) or {}).get("state") == "processing":
                return
            await asyncio.sleep(0.05)


def answer(caller: Raw, inbox: str) -> dict[str, Any] | None:
    """What has come to `inbox`; None if nothing has."""
    return next((json.loads(message.body) for message in caller.messages if message.subject == inbox and message.body), None)


def remembered(there: Place) -> int:
    """How many requests from another account the servers know the way back of."""
    pages = (one.monitor(f"accountz?acc={SUBJECTS.root.upper()}")["account_detail"] for one in there.servers)
    return sum(len(page.get("responses") or ()) for page in pages)
