"""What a stream holds for names that no agent has: read once, and again when it has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from agentmesh.edge.batches import in_parts
from agentmesh.edge.manage import SubjectCounts, count_all
from agentmesh.edge.read import StoredMessage, read
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.edge.transport import Transport
from agentmesh.errors import BadRequest
from agentmesh.names import agent_name

MOST_READ = 2000
"""Names that are read in one look; if there are more, the next one follows at once."""
AT_ONCE = 16
"""Names that are read, or whose mail is ended, at the same time."""
OVERHEAD = 256
"""What a message counts beside its body and headers: the store and this table need room for it too."""


class Waiting(NamedTuple):
    """A message for nobody. `time`: when it was stored, by the server's clock."""

    seq: int
    time: float
    size: int


class Beyond(NamedTuple):
    """By name, the sequences up to which messages must go: because they are old, or because too much is kept."""

    aged: dict[str, int]
    crowded: dict[str, int]


def beyond(kept: Mapping[str, Sequence[Waiting]], *, before: float, names: int, size: int) -> Beyond:
    """What of `kept` (by name, in stream order) is beyond a bound.

    Args:
        before: what was stored up to then is old.
        names: most names.
        size: most bytes.
    """
    aged = {name: max(seqs) for name, mail in kept.items() if (seqs := [one.seq for one in mail if one.time <= before])}
    left = {name: rest for name, mail in kept.items() if (rest := [one for one in mail if one.time > before])}
    oldest_first = sorted(left, key=lambda name: left[name][0].seq)
    crowded = {name: left.pop(name)[-1].seq for name in oldest_first[: max(0, len(left) - names)]}
    total = sum(one.size for mail in left.values() for one in mail)
    if total > size:
        for one, name in sorted((one, name) for name, mail in left.items() for one in mail):
            if total <= size:
                break
            total -= one.size
            crowded[name] = one.seq
    return Beyond(aged, crowded)


class Looked(NamedTuple):
    """What a look has found. `new`: names that were not there before; `more`: there are names that were not read yet."""

    counts: SubjectCounts
    new: list[str]
    more: bool


class UnclaimedTable:
    """What the stream `stream` holds for nobody: `kept`, by name, in stream order."""

    def __init__(
        self,
        transport: Transport,
        stream: str,
        *,
        name_of: Callable[[str], str | None],
        filter_of: Callable[[str], str],
        counts: Callable[[StoredMessage], bool] = lambda message: True,
    ) -> None:
        """
        Args:
            name_of: the name that a subject is for; None: it is for none.
            filter_of: the subjects of a name.
            counts: whether a message is meant.
        """
        self.kept: dict[str, list[Waiting]] = {}
        self._t = transport
        self._stream = stream
        self._name_of = name_of
        self._filter_of = filter_of
        self._counts = counts
        self._read_at: dict[str, int] = {}
        """By name: how many messages there were when it was read."""

    def forget(self, name: str | None = None) -> None:
        """Read what lies there for `name`, or for all, again."""
        if name is None:
            self.kept.clear()
            self._read_at.clear()
        else:
            self.kept.pop(name, None)
            self._read_at.pop(name, None)

    async def look(self, is_known: Callable[[str], bool]) -> Looked:
        """Bring `kept` up to date. `is_known(name)`: the name has a spec.

        Raises:
            MeshError, ApiError: it cannot be looked now.
        """
        found = await count_all(self._t, self._stream)
        counts: dict[str, int] = {}
        async for part in in_parts(found.subjects.items()):
            for subject, count in part:
                name = self._name_of(subject)
                if name is not None and not is_known(name) and _is_name(name):
                    counts[name] = counts.get(name, 0) + count
        for name in self._read_at.keys() - counts.keys():
            self.forget(name)
        unread = [name for name, count in counts.items() if count != self._read_at.get(name)]
        now = unread[:MOST_READ]
        new = [name for name in now if name not in self._read_at]
        await some_at_a_time(now, self._read)
        return Looked(found, new, len(unread) > len(now))

    async def _read(self, name: str) -> None:
        """From any replica: what one that lags has not shown yet differs from the count, and is read in the next look."""
        mail: list[Waiting] = []
        number, after, pending = 0, 0, 1
        while pending:
            messages, pending = await read(self._t, self._stream, self._filter_of(name), from_seq=after + 1)
            if not messages:
                break
            number += len(messages)
            for message in messages:
                after = message.seq
                if self._counts(message):
                    headers = sum(len(key) + len(value) for key, value in message.headers.items())
                    mail.append(Waiting(message.seq, message.time, len(message.data) + headers + OVERHEAD))
        self.kept[name] = mail
        self._read_at[name] = number


def _is_name(text: str) -> bool:
    """Whether an agent can have this name. Subjects hold other things too, wildcards among them, which must be no filters."""
    try:
        agent_name(text)
    except BadRequest:
        return False
    return True


async def some_at_a_time[T](items: Sequence[T], work: Callable[[T], Awaitable[None]]) -> None:
    """`work` on each of `items`, in order, `AT_ONCE` of them at a time. The first error ends it."""
    waiting = iter(items)

    async def some() -> None:
        for item in waiting:
            await work(item)

    tasks = [asyncio.ensure_future(some()) for _ in range(min(AT_ONCE, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        await cancel_and_wait(*tasks)
