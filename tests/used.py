"""What of each role's list was used, from the traces of servers: `python tests/used.py FOLDER` after `make test-roles`.

Nothing is sent that is not listed: servers refuse it, and the test in which it happens fails (`roled.py`). Nothing is listed that
is never sent, but for what stands in `UNUSED` with its reason.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from agentmesh.access.roles import INSIDE, STREAMS, Role, lists
from agentmesh.control_operations import GIVEN
from agentmesh.subjects import Subjects

type Kind = Literal["publish", "subscribe"]
_SENT = re.compile(r'"[^"/]*/user:(\w+)-(\w+)" - <<- \[(H?PUB|SUB) (\S+) ')
_MESH = Subjects("mesh")
_STREAMS = (*(_MESH.stream(role) for role in STREAMS), _MESH.blob_stream)
_ASKED = "every user may ask for its own permissions; only clients do"
_CROSSED = "for requests from another account, whose tests have users of their own"
_BY_HAND = "for clients without the SDK, which publishes the mail itself"
_LATECOMER = "a latecomer's ask, or a journal that has grown beside the index"
_LARGE = "a record that exceeds a message, which no live test has in a journal that it reads or ends"
_BLOB_READS = tuple(f"$JS.API.{verb}.{_MESH.blob_stream}" for verb in ("STREAM.MSG.GET", "DIRECT.GET"))
_BLOB_PURGE = f"$JS.API.STREAM.PURGE.{_MESH.blob_stream}"
UNUSED: dict[tuple[Role, str], str] = {
    ("node", "mesh.notify.>"): _CROSSED,
    ("node", "_R_.>"): _CROSSED,
    ("node", "$SYS.REQ.USER.INFO"): _ASKED,
    ("node", "$KV.mesh-registry.applied.>"): "written where a second sender starts or stops an agent: the simulator does it",
    ("node", "$JS.API.DIRECT.GET.MESH_DEAD"): "a dead letter that is sent again is read from the leader first",
    ("supervisor", "mesh.notify.>"): _CROSSED,
    ("supervisor", "mesh.peer-inbox.>"): _CROSSED,
    ("supervisor", "mesh.peer-notify.>"): _CROSSED,
    ("supervisor", "mesh.live.control.>"): "asked by a poll that the gateway of a supervisor serves, while a node could have",
    ("supervisor", "_R_.>"): _CROSSED,
    **{("supervisor", f"mesh.live.control-{op}.> mesh"): "heard while owners of an older build run" for op in GIVEN},
    ("supervisor", "$SYS.REQ.USER.INFO"): _ASKED,
    ("supervisor", "mesh.peer-answer.>"): "the answer to an agent that waits for one that never was",
    **{("supervisor", entry): _LARGE for entry in ("$O.mesh-blobs.C.>", "$O.mesh-blobs.M.>", *_BLOB_READS, _BLOB_PURGE)},
    ("supervisor", "$JS.API.DIRECT.GET.MESH_TIMER"): _LATECOMER,
    ("supervisor", "$JS.API.DIRECT.GET.MESH_RESULT"): _LATECOMER,
    ("setup", "$SYS.REQ.USER.INFO"): _ASKED,
    ("setup", "mesh.inbox._probe"): "`mesh setup` as a process of its own, which tests/node/process/test_secured.py starts",
    ("setup", "$JS.API.STREAM.NAMES"): "`mesh up` on a store whose streams are not shown",
    **{("setup", f"$JS.API.STREAM.UPDATE.{stream}"): "settings that change are set in tests/node/process" for stream in _STREAMS},
    **{("operator", entry): _LARGE for entry in _BLOB_READS},
    ("operator", "mesh.tell.>"): _BY_HAND,
    ("operator", "mesh.event-to.>"): _BY_HAND,
    ("operator", "mesh.poll.>"): _BY_HAND,
    ("operator", "$KV.mesh-registry.epoch"): "raised by hand behind a restore",
    ("operator", "mesh.event.>"): "`mesh events` of all agents, which is tested on a server with users of its own",
}


class Use(NamedTuple):
    """An entry of a role's list."""

    role: Role
    kind: Kind
    entry: str
    """As it is for the root `mesh`."""


@functools.cache
def entries(role: Role, root: str = "mesh") -> tuple[tuple[Kind, str], ...]:
    """Of a role's lists: each entry, in order."""
    granted = lists(role, Subjects(root), user=role if root == "mesh" else f"{role}-{root}")
    return (*(("publish", one) for one in granted.publish_allow), *(("subscribe", one) for one in granted.subscribe_allow))


def covers(entry: str, subject: str) -> bool:
    """Whether an entry of a list permits a subject, which may have wildcards."""
    wanted, given = entry.split(" ", maxsplit=1)[0].split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(given) > index
        if index >= len(given) or (token not in ("*", given[index])):
            return False
    return len(wanted) == len(given)


@functools.lru_cache(maxsize=1 << 16)
def _used(role: Role, root: str, kind: Kind, subject: str) -> tuple[int, ...]:
    return tuple(index for index, (of, entry) in enumerate(entries(role, root)) if of == kind and covers(entry, subject))


def uses(log: str) -> Iterator[Use]:
    """What of the lists the clients in a traced log have used."""
    for role, root, verb, subject in _SENT.findall(log):
        if role in INSIDE:
            kind: Kind = "subscribe" if verb == "SUB" else "publish"
            for index in _used(role, root, kind, subject):
                yield Use(role, kind, entries(role)[index][1])


def keep(log: str, folder: Path) -> None:
    """Add what a log tells to the file of this process."""
    file = folder / f"{os.getpid()}.json"
    known = {Use(*one) for one in json.loads(file.read_text())} if file.exists() else set[Use]()
    file.write_text(json.dumps(sorted(known | set(uses(log)))))


def main() -> int:
    """Print what was never used; 1 if it has no reason."""
    found = {Use(*one) for file in Path(sys.argv[1]).glob("*.json") for one in json.loads(file.read_text())}
    roles = {use.role for use in found}
    idle = [
        Use(role, *one)
        for role in get_args(Role.__value__)
        if role in roles
        for one in entries(role)
        if Use(role, *one) not in found
    ]
    unnamed = [use for use in idle if (use.role, use.entry) not in UNUSED]
    for use in idle:
        print(f"never used: {use.role} {use.kind} {use.entry}: {UNUSED.get((use.role, use.entry), 'NO REASON')}")
    for role, entry in UNUSED:
        if role in roles and not any((use.role, use.entry) == (role, entry) for use in idle):
            print(f"used: {role} {entry}, which stands in UNUSED")
    print(f"{len(found)} entries used by {', '.join(sorted(roles))}; {len(idle)} never, {len(unnamed)} of them without a reason")
    return 1 if unnamed or not found else 0


if __name__ == "__main__":
    sys.exit(main())
