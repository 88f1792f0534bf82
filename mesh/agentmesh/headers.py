"""Header names and values as clients of many languages write them, and as all of them can read them. Pure.

What a client does to a header depends on its language: some trim values and some do not, some look names up whatever their case,
some write any Unicode and some refuse it, and one goes deaf on what others write without complaint. So the mesh reads what any of
them may mean, and writes what each of them can read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agentmesh.errors import BadRequest

CONTENT_TYPE = "Content-Type"
TRACE_HEADERS = ("traceparent", "tracestate", "baggage")
"""W3C trace context and baggage, as the mesh spells them."""
STATE_KEY = "mesh"
"""The mesh's member of `tracestate`: `mesh=<depth>-<start>`, the turns so far and when the first one began (seconds since the
epoch)."""
MAX_BAGGAGE_MEMBERS = 64
MAX_BAGGAGE_BYTES = 8192
"""W3C's limits."""
MAX_SHOWN = 80

_TRACE_HEADS = frozenset("tTbB")
_USUAL = frozenset(
    (
        *(
            "Mesh-Reply-To",
            "Mesh-Stream-To",
            "Mesh-For",
            "Mesh-Deadline",
            "Mesh-Timeout",
            "Mesh-Budget",
            "Mesh-Key",
            "Mesh-Key-Digest",
            "Nats-Msg-Id",
            CONTENT_TYPE,
        ),
        *(
            "Mesh-From",
            "Mesh-From-Life",
            "Mesh-Origin",
            "Mesh-Tag",
            "Mesh-Path",
            "Mesh-Root",
            "Mesh-End-By",
            "Nats-Scheduler",
            "Nats-Schedule-Next",
        ),
        *("Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Last-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending"),
    )
)
"""Names of most mail, as the mesh spells them: where there are no others, nothing is looked for in other spellings."""


def trace_in(headers: Mapping[str, str]) -> dict[str, str]:
    """The W3C trace context among `headers`, by its lower-case names, in whatever case they are written, to be handed on.

    W3C's names are those of HTTP, where case does not matter: OpenTelemetry's carrier for Go writes `Traceparent`. If a name is
    there in several spellings, the lower-case one counts.
    """
    found: dict[str, str] = {}
    if _USUAL.issuperset(headers):
        return found
    for name in headers:
        if name[:1] in _TRACE_HEADS:
            plain = name.lower()
            if plain in TRACE_HEADERS and (name == plain or plain not in found):
                found[plain] = legible(headers[name])
    if "baggage" in found:
        found["baggage"] = bounded_baggage(found["baggage"])
    return found


def bounded_baggage(text: str, size: int = MAX_BAGGAGE_BYTES) -> str:
    """`text` with as many of its members, from the front, as W3C's limits and `size` (in bytes) allow; none is cut in two."""
    if not text or (len(text) <= size and text.count(",") < MAX_BAGGAGE_MEMBERS):
        return text
    return ",".join(fitting(text.split(",")[:MAX_BAGGAGE_MEMBERS], size))


def fitting(members: list[str], size: int) -> Iterator[str]:
    """Those of `members` from the front that take `size` bytes at most together, with the commas between them."""
    for member in members:
        size -= len(member) + 1
        if size < -1:
            return
        yield member


def content_type_in(headers: Mapping[str, str]) -> str | None:
    """The value of `Content-Type`, in whatever case its name is written: bridges from HTTP write it in lower case."""
    if CONTENT_TYPE in headers:
        return headers[CONTENT_TYPE]
    if _USUAL.issuperset(headers):
        return None
    return next((value for name, value in headers.items() if name.lower() == "content-type"), None)


def is_json(headers: Mapping[str, str]) -> bool:
    """Whether `headers` declare the body as JSON."""
    declared = content_type_in(headers)
    return declared is not None and declared.partition(";")[0].strip().lower() == "application/json"


def is_name(text: str) -> bool:
    """Whether clients of every language can read `text` as the name of a header."""
    return bool(text) and text.isascii() and text.isprintable() and ":" not in text and " " not in text


def readable(value: str) -> bool:
    """Whether clients of every language can read `value` as that of a header: it is printable ASCII."""
    return value.isascii() and value.isprintable()


def legible(value: str) -> str:
    """`value` as one line of printable ASCII, for people: other characters become `?`, line breaks and tabs blanks."""
    if readable(value):
        return value
    return "".join(c if readable(c) else "?" for c in " ".join(value.split()))


def message_id(text: str) -> str:
    """`text`, if it can be the id of a message (`Nats-Msg-Id`).

    Clients of some languages trim a header's value and others do not, and the server compares ids with the blanks at their end:
    an id with such blanks would be two ids, and two turns.

    Raises:
        BadRequest: it is empty, has outer blanks, or is not printable ASCII.
    """
    # Written out, since all mail passes here: readable, and no blank at either end.
    if not (text and text.isascii() and text.isprintable() and text[0] != " " and text[-1] != " "):
        shown = ascii(text) if len(text) <= MAX_SHOWN else ascii(text[:MAX_SHOWN]) + "..."
        raise BadRequest(f"{shown} is not a message id: Nats-Msg-Id is printable ASCII without blanks around it")
    return text
