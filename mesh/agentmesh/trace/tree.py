"""One request as a tree of spans, and attempts that still run. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from agentmesh import semconv
from agentmesh.identity import told
from agentmesh.trace.spans import AttemptEnd, Began, ToldSpan

DIED: frozenset[str] = frozenset({"lost", "moved", "fenced"})
"""Ends of attempts that their own owner did not tell."""


class Branch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A span of the tree, with what is below it."""

    id: str
    parent: str = ""
    """The id of the span above it, which need not be among those that have been told."""
    op: str
    name: str
    agent: str
    kind: str
    node: str = ""
    start: float
    end: float | None = None
    """None: it has not ended, as far as has been told."""
    error: str = ""
    ref: str = ""
    turn: int | None = None
    attempt: int | None = None
    ended: AttemptEnd | None = None
    """How an attempt ended; None for other spans, and while it runs."""
    lane: str = ""
    """Of a message: the lane of mail that it came by."""
    caller: str = ""
    """Of a message: the agent that sent it; empty if none did."""
    chain: str = ""
    """On whose behalf it is, the oldest first; empty where no user is known (docs/security.md#on-whose-behalf)."""
    wait_s: float | None = None
    tokens: int = 0
    """Input and output tokens, of this span alone."""
    usd: float = 0.0
    """Likewise, in US dollars."""
    all_tokens: int = 0
    """Those of all attempts from here downwards."""
    all_usd: float = 0.0
    links: tuple[str, ...] = ()
    below: tuple[Branch, ...] = ()

    @property
    def died(self) -> bool:
        """Whether it is an attempt that its owner did not end."""
        return self.ended in DIED


def merged(spans: Iterable[ToldSpan]) -> dict[str, ToldSpan]:
    """Each span once, by its id: what was committed counts more than what the next owner has found."""
    found: dict[str, ToldSpan] = {}
    for span in spans:
        known = found.get(span.id)
        if known is None or (known.attributes.get(semconv.ATTEMPT_END) in DIED and _is_end(span)):
            found[span.id] = span
    return found


def _is_end(span: ToldSpan) -> bool:
    return span.attributes.get(semconv.ATTEMPT_END) in ("ok", "error")


def tree_of(spans: Iterable[ToldSpan], running: Iterable[Began] = ()) -> tuple[Branch, ...]:
    """What has no parent among the spans of one trace, oldest first, with all that is below it.

    Args:
        spans: of one trace, in any order.
        running: attempts of it that began; those whose span is there as well have ended.
    """
    known = merged(spans)
    branches = {span.id: _branch(span) for span in known.values()}
    parents = {span.id: span.parent for span in known.values()}
    for began in running:
        if began.span not in branches:
            branches[began.span] = _running(began)
            parents[began.span] = began.parent
    below: dict[str, list[str]] = {}
    tops: list[str] = []
    for one, parent in parents.items():
        if parent in branches and parent != one:
            below.setdefault(parent, []).append(one)
        else:
            tops.append(one)
    grown = _Grown(branches, below)
    found = [grown.branch(top) for top in tops]
    # What forms a circle has no top: any publisher may have told it. It is shown flat.
    found += [branches[one] for one in branches if one not in grown.seen]
    return tuple(sorted(found, key=_order))


class _Grown:
    """Puts branches together, from the leaves: a chain may be deeper than the interpreter's stack."""

    def __init__(self, branches: dict[str, Branch], below: dict[str, list[str]]) -> None:
        self._branches = branches
        self._below = below
        self.seen: set[str] = set()

    def branch(self, top: str) -> Branch:
        order, todo = [], [top]
        while todo:
            one = todo.pop()
            self.seen.add(one)
            order.append(one)
            todo += self._below.get(one, ())
        done: dict[str, Branch] = {}
        for one in reversed(order):
            children = sorted((done.pop(child) for child in self._below.get(one, ())), key=_order)
            branch = self._branches[one]
            counts = branch.op == "invoke_agent"  # its model calls are counted in it
            done[one] = msgspec.structs.replace(
                branch,
                below=tuple(children),
                all_tokens=sum(child.all_tokens for child in children) + (branch.tokens if counts else 0),
                all_usd=round(sum(child.all_usd for child in children) + (branch.usd if counts else 0.0), 9),
            )
        return done[top]


def _order(branch: Branch) -> tuple[float, str]:
    return branch.start, branch.id


def _branch(span: ToldSpan) -> Branch:
    of = span.attributes
    end = of.get(semconv.ATTEMPT_END)
    wait = of.get(semconv.WAIT)
    return Branch(
        id=span.id,
        parent=span.parent,
        op=span.op,
        name=span.name,
        agent=span.agent,
        kind=span.service,
        node=span.node,
        start=span.start,
        end=span.end,
        error=span.error,
        ref=str(of.get(semconv.REF, "")),
        turn=_whole(of.get(semconv.TURN)),
        attempt=_whole(of.get(semconv.ATTEMPT)),
        ended=end if end in ("ok", "error", "lost", "fenced", "moved") else None,  # type: ignore[arg-type]
        lane=str(of.get(semconv.LANE, "")),
        caller=str(of.get(semconv.CALLER_NAME, "")),
        chain=str(of.get(semconv.CHAIN, "")),
        wait_s=float(wait) if isinstance(wait, int | float) else None,
        tokens=sum(_whole(of.get(name)) or 0 for name in (semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS)),
        usd=float(of.get(semconv.COST, 0.0)),
        links=span.links,
    )


def _running(began: Began) -> Branch:
    return Branch(
        id=began.span,
        parent=began.parent,
        op="invoke_agent",
        name=semconv.invoke_agent(began.agent),
        agent=began.agent,
        kind=began.service,
        node=began.node,
        start=began.started,
        ref=began.ref,
        turn=began.turn,
        attempt=began.crashes + began.retries + 1,
        caller=began.sender or "",
        chain=told(began.chain),
        links=began.links,
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def walk(branches: Iterable[Branch], depth: int = 0) -> Iterator[tuple[int, Branch]]:
    """All of these trees, from the top, each with its depth."""
    todo = [(depth, branch) for branch in reversed(tuple(branches))]
    while todo:
        level, branch = todo.pop()
        yield level, branch
        todo += [(level + 1, child) for child in reversed(branch.below)]
