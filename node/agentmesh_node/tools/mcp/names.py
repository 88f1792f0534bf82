"""The names under which a model sees the tools of MCP servers.

APIs of models take 64 letters, digits, `_` and `-`; servers call their tools as they like. A name that has to be changed ends in
a digest of what it was, so two tools never share a name, and no name is shortened into that of another tool. It depends on
nothing but the names of server and tool, and on what the agent's class declares: it stays as it is when a server's list changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

LONGEST = 64
"""Most characters of a name that all APIs take."""
DIGEST = 8
"""Characters of the digest."""


def model_names(server: str, tools: Iterable[str], *, taken: Collection[str], servers: Collection[str]) -> dict[str, str]:
    """The name of each tool before the model -> the server's own name of it, in the server's order.

    Args:
        taken: names of the agent's other tools.
        servers: the names of all its servers, this one included.
    """
    own = list(dict.fromkeys(tools))
    # A longer server's tools begin with its own name: `a__b` has the tool `c`, and `a` may have `b__c`.
    claimed = tuple(f"{other}__" for other in servers if len(other) > len(server))
    plain = {tool for tool in own if _fits(name := f"{server}__{tool}") and name not in taken and not name.startswith(claimed)}
    used = {*taken, *(f"{server}__{tool}" for tool in plain)}
    found: dict[str, str] = {}
    for tool in own:
        name = f"{server}__{tool}" if tool in plain else _marked(server, tool, used)
        used.add(name)
        found[name] = tool
    return found


def _fits(name: str) -> bool:
    return len(name) <= LONGEST and all(_allowed(c) for c in name)


def _allowed(c: str) -> bool:
    return c.isascii() and (c.isalnum() or c in "_-")


def _marked(server: str, tool: str, used: Collection[str]) -> str:
    """A name that fits, with a digest; a longer digest if somebody has made that very name up."""
    digest = hashlib.sha256(f"{server}\0{tool}".encode(errors="surrogatepass")).hexdigest()
    like = "".join(c if _allowed(c) else "_" for c in f"{server}__{tool}")
    lengths = range(DIGEST, LONGEST // 2)
    return next(name for n in lengths if (name := f"{like[: LONGEST - 1 - n]}_{digest[:n]}") not in used)
