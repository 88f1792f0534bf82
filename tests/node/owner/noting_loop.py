"""An owner's loop for the tests of the parts that are given one: its machine notes what it is fed, and does as the test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import structs

from agentmesh.records import Ledger
from agentmesh.turn import new_core
from agentmesh.turn.values import Command, Config, Core, Input, Phase
from agentmesh_node.owner.claim import OwnershipLost
from agentmesh_node.owner.journal_writer import JournalWriter
from agentmesh_node.owner.loop import OwnerLoop, UserCode
from node.simulated import SimulatedNode

AGENT = "a"


class NotingLoop:
    """The loop of the owner of `AGENT`: an idle agent, until the test makes it another one with `become`."""

    def __init__(self, node: SimulatedNode, *, user_code: UserCode | None = None) -> None:
        self.inputs: list[Input] = []
        """What the machine was fed."""
        self.react: Callable[[Input], None] = lambda item: None
        """Called with each input."""
        self.ends: list[OwnershipLost | None] = []
        self.noticed: Callable[[], None] = lambda: None
        """Called when an input comes while none is handled."""
        self.loop = OwnerLoop(
            AGENT,
            writer=JournalWriter(node.services, AGENT, committed=0),
            work=node.services.run_queue.share(AGENT),
            now=node.services.now,
            user_code=user_code,
            formats=node.services.formats,
            machine=self._advance,
        )

    def begin(self, ledger: Ledger | None = None, **core: Any) -> OwnerLoop:
        """Have it handle inputs, with fields of the core as given."""
        whole = new_core(Config(name=AGENT, kind="Doll"), ledger or Ledger(incarnation="life", phase="ready"))
        self.loop.begin(
            structs.replace(whole, **{"phase": Phase.IDLE, **core}),
            {},
            kill_turn=self._kill_turn,
            on_input=lambda: self.noticed(),
            on_end=self.ends.append,
        )
        return self.loop

    @property
    def core(self) -> Core:
        assert self.loop.core is not None
        return self.loop.core

    def become(self, **fields: Any) -> None:
        """Change the core, as the machine would."""
        self.loop.core = structs.replace(self.core, **fields)

    def consume(self, **positions: int) -> None:
        """The journal says of these lanes that they are consumed up to there (`peer_inbox=7`)."""
        lanes = {lane.replace("_", "-"): seq for lane, seq in positions.items()}
        ledger = structs.replace(self.core.ledger, positions=self.core.ledger.positions | lanes)
        self.become(ledger=ledger, work=ledger)

    def _advance(self, core: Core, item: Input, now: float) -> tuple[Core, list[Command]]:
        self.inputs.append(item)
        self.react(item)
        return self.core, []

    async def _kill_turn(self) -> None:
        raise AssertionError("no turn runs")
