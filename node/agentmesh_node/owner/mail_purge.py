"""Purges consumed mail, many messages at a time (docs/architecture.md#consumed-mail).

A lane is bounded, so consumed mail must go before it crowds out new mail. But during the duplicate window an agent knows the id
of a message only if that is still stored, or is in its ledger. So a lane is purged either when it is half full, mostly with
consumed mail, and then the ledger remembers the ids; or when all its mail is older than the window. An agent does not come to
rest before that: while it sleeps it would not notice that its full lane refuses every sender.

What was purged may be back behind the death of a server (docs/nats.md#what-a-killed-server-forgets). It lies below the positions,
so nobody reads it; it counts here as what it is, consumed mail, and goes in the same way.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.manage import purge
from agentmesh.edge.read import TIME_STAMP, StoredMessage
from agentmesh.records import Bury, Seen
from agentmesh.subjects import LANES
from agentmesh.turn.draft import digest
from agentmesh.turn.values import Trim
from agentmesh.wire import MSG_ID, Mail, parse_time
from agentmesh_node.owner.loop import OwnerLoop
from agentmesh_node.services import Services

log = logging.getLogger("agentmesh.node")


class MailPurger:
    """Keeps one agent's lanes short."""

    def __init__(self, loop: OwnerLoop, services: Services) -> None:
        self._loop = loop
        self._s = services
        self._half = max(1, services.settings.mailbox_limit // 2)
        self._recent: dict[str, deque[tuple[int, str | None, str | None]]] = {lane: deque() for lane in LANES}
        """Per lane, what is stored: sequence, message id, and when it was stored."""
        self._below: dict[str, tuple[str, int]] = {}
        self._busy = False
        self._numbers = 0

    def stored(self, lane: str, messages: Sequence[StoredMessage]) -> None:
        """Note all that a lane holds of mail that has been seen before: what former owners have left, or what is back."""
        self._recent[lane] = deque((m.seq, m.headers.get(MSG_ID) or None, m.headers.get(TIME_STAMP)) for m in messages)
        self._purge_if_due(lane)

    @property
    def at_ease(self) -> bool:
        """Whether no lane is crowded with consumed mail."""
        return not self._busy and not any(self._due(lane) for lane in LANES)

    @property
    def lingering(self) -> bool:
        """Whether mail is stored that can be purged once it is consumed and older than the window."""
        return any(self._position(lane) > 0 and bool(self._recent[lane]) for lane in LANES)

    def _old(self, lane: str) -> bool:
        """Whether the oldest mail that `lane` holds is consumed."""
        recent = self._recent[lane]
        return bool(recent) and recent[0][0] <= self._position(lane)

    def arrived(self, mail: tuple[Mail, ...]) -> None:
        """Note new mail, and begin a purge if one is due."""
        for item in mail:
            self._recent[item.lane].append((item.seq, item.msg_id, item.stored))
        self._purge_if_due(mail[-1].lane)

    def _due(self, lane: str) -> bool:
        """Whether `lane` is half full and half of that is consumed."""
        recent = self._recent[lane]
        return len(recent) >= self._half and recent[max(1, self._half // 2) - 1][0] <= self._position(lane)

    def _position(self, lane: str) -> int:
        """Up to which sequence the mail of `lane` may go: it is consumed, and of none of it a dead letter has yet to be made."""
        core = self._loop.core
        if core is None:
            return 0
        position = core.ledger.positions.get(lane, 0)
        if core.ledger.effects:
            done = frozenset(core.done)
            for origin, one in core.ledger.effects.items():
                effect = one.effect
                if isinstance(effect, Bury) and effect.lane == lane and 0 < effect.seq <= position and origin not in done:
                    position = effect.seq - 1
        return position

    def _purge_if_due(self, lane: str) -> bool:
        """Begin to purge `lane` if that is due. Returns whether it was."""
        if self._busy or not self._due(lane):
            return False
        self._busy = True
        self._s.spawn(self._trim(lane))
        return True

    async def _trim(self, lane: str) -> None:
        """Have the ledger remember the ids; the purge follows once that is committed."""
        position = self._position(lane)
        horizon = self._s.now() - self._s.remember_s
        recent = [(seq, msg_id, at) for seq, msg_id, at in self._recent[lane] if seq <= position and msg_id is not None]
        ids = [(seq, msg_id, parse_time(at) if at is not None else self._s.now()) for seq, msg_id, at in recent]
        seen: dict[str, Seen] = {}
        for seq, msg_id, at in ids:
            if at > horizon:
                seen.setdefault(digest(msg_id), Seen(str(seq), at))  # the first one has the outcome
        token = self._planned(lane, position)
        if seen:
            self._loop.feed(Trim(token, seen))
        else:
            await self.remembered(token)

    def _planned(self, lane: str, position: int) -> str:
        self._numbers += 1
        token = f"trim-{self._numbers}"
        self._below[token] = (lane, position)
        return token

    def asked_for(self, token: str) -> bool:
        """Whether `token` belongs to a `Trim` of this purger."""
        return token in self._below

    async def remembered(self, token: str) -> None:
        """Purge: the ids are in the journal, or there are none to keep. Every purge of mail names a sequence."""
        lane, position = self._below.pop(token)
        try:
            subject = self._s.subjects.lane(lane, self._loop.name)
            await purge(self._s.transport, self._s.subjects.stream(LANES[lane].stream), subject, below=position + 1)
        except EDGE_ERRORS as error:
            log.debug("mail not purged now: %s", error, extra={"agent": self._loop.name})
        else:
            recent = self._recent[lane]
            while recent and recent[0][0] <= position:
                recent.popleft()
        finally:
            self._busy = False

    def quiet(self, seconds: float) -> None:
        """Called from time to time while the agent is idle; `seconds` says for how long.

        No new mail comes to a full lane, so nothing else would begin its purge. After the window no ids need to be remembered.
        """
        if self._busy or any(self._purge_if_due(lane) for lane in LANES):
            return
        if seconds > self._s.duplicate_window_s:
            for lane in LANES:
                if self._old(lane):
                    self._busy = True
                    self._s.spawn(self.remembered(self._planned(lane, self._position(lane))))
                    return
