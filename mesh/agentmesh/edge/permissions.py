"""What the user of a connection may do, as its server says (`$SYS.REQ.USER.INFO`): nothing is tried that would be refused.

The server is asked once for each connection of a user that has a login, when something is about to be sent. Until it has said
what holds for a new connection, what held for the one before is the best guess: nothing is refused by it, but a way is chosen by
it (case 624). Where it does not say at all, all is tried, and what is refused is met as it comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.refusals import Violation, forbidden
from agentmesh.edge.transport import Disconnected, RequestTimeout, Transport
from agentmesh.errors import Unavailable

USER_INFO = "$SYS.REQ.USER.INFO"
LEARN_S, AGAIN_S = 2.0, 5.0
"""Wait for the server's first answer, and for the second one if that does not come: then it is taken to say nothing."""


class _Subjects(msgspec.Struct, frozen=True):
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


class _Lists(msgspec.Struct, frozen=True):
    publish: _Subjects = _Subjects()
    subscribe: _Subjects = _Subjects()


class _UserData(msgspec.Struct):
    permissions: _Lists | None = None


class _UserInfo(msgspec.Struct):
    data: _UserData


class PatternLists(NamedTuple):
    """Subjects that are allowed (none: all) and those of them that are denied, each with its tokens."""

    allow: Sequence[Sequence[str]]
    deny: Sequence[Sequence[str]]

    def admit(self, subject: str) -> bool:
        """Whether the server admits this subject, which may be a pattern."""
        tokens = subject.split(".")
        if self.allow and not any(covers(pattern, tokens) for pattern in self.allow):
            return False
        return not any(covers(pattern, tokens) for pattern in self.deny)


def covers(pattern: Sequence[str], tokens: Sequence[str]) -> bool:
    """Whether every subject that `tokens` stand for matches `pattern`."""
    for index, token in enumerate(pattern):
        if token == ">":
            return len(tokens) > index
        if index >= len(tokens) or tokens[index] == ">" or (token != "*" and token != tokens[index]):
            return False
    return len(pattern) == len(tokens)


class Permissions:
    """What one connection's user may do."""

    def __init__(self, transport: Transport, user: Callable[[], str], on_known: Callable[[], None] = lambda: None) -> None:
        """`user` names the user, for people; `on_known` is called whenever the server was asked."""
        self._t = transport
        self._user = user
        self._on_known = on_known
        self._lock = asyncio.Lock()
        self._publish: PatternLists | None = None
        self._subscribe: PatternLists | None = None
        self.known = False
        """Whether the server was asked since the connection was made."""
        self.told = False
        """Whether it was asked since this client was made: before that a way is no more than a guess."""
        self._unanswered = False
        self._connections = 0

    def forget(self) -> None:
        """The next connection may be permitted something else."""
        self.known = self._unanswered = False
        self._connections += 1

    async def learn(self) -> None:
        """Ask the server, unless that was done. Without a connection, or an answer in time, it is asked again."""
        async with self._lock:
            if self.known:
                return
            connection = self._connections
            try:
                lists = await self._lists(AGAIN_S if self._unanswered else LEARN_S)
            except Disconnected:
                return
            except RequestTimeout:
                if not self._unanswered:
                    self._unanswered = True
                    return
                lists = None
            except (*EDGE_ERRORS, msgspec.DecodeError):
                lists = None
            if connection != self._connections:
                return  # the answer was the last thing that came
            self._publish = None if lists is None else _patterns(lists.publish)
            self._subscribe = None if lists is None else _patterns(lists.subscribe)
            self.known = self.told = True
            self._on_known()

    async def _lists(self, timeout: float) -> _Lists | None:
        reply = await self._t.request(USER_INFO, timeout=timeout)
        return msgspec.json.decode(reply.data, type=_UserInfo).data.permissions

    async def learn_now(self) -> None:
        """As `learn`.

        Raises:
            Unavailable: no server has said it so far.
        """
        await self.learn()
        if not self.told:
            raise Unavailable("no NATS server has said yet what this user may do; try again")

    def may_publish(self, subject: str) -> bool | None:
        """None: that is not known."""
        return None if self._publish is None else self._publish.admit(subject)

    def may_subscribe(self, subject: str) -> bool | None:
        """None: that is not known."""
        return None if self._subscribe is None else self._subscribe.admit(subject)

    @property
    def confined(self) -> bool:
        """Whether a list names all that this user may publish to: what is not in it is not meant for this user."""
        return self._publish is not None and bool(self._publish.allow)

    async def forbids(self, *subjects: str) -> bool:
        """Whether this user is known to be allowed to publish to none of these subjects."""
        if not self.known:
            await self.learn()
        return all(self.may_publish(subject) is False for subject in subjects)

    async def check(self, subject: str) -> None:
        """Refuse at once what the server would refuse.

        Raises:
            NotPermitted: this user may not publish there.
        """
        if subject != USER_INFO and await self.forbids(subject) and self.known:
            raise forbidden(Violation("publish", subject), self._user())

    def permits(self, subject: str) -> bool:
        """Whether it is known that publishing to `subject` is not refused for sure."""
        return self.known and self.may_publish(subject) is not False


def _patterns(subjects: _Subjects) -> PatternLists:
    # A subscription's entry may have a queue group behind its subject.
    allow, deny = ([entry.split(" ")[0].split(".") for entry in entries] for entries in (subjects.allow, subjects.deny))
    return PatternLists(allow, deny)
