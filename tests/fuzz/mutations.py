"""Mutations of recorded streams, by seed, at three levels: bytes, frames, members of JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from fuzz.recordings import Recording, data_of

ENDLESS = 2000
"""How often a frame comes that is repeated without end: more than any reader here takes."""
type Frames = list[bytes]
type Path = tuple[Any, ...]


def mutated(recording: Recording, random: Random) -> tuple[Frames, list[str]]:
    """The frames of a recording with one to three mutations, and their names. Later frames are preferred: what is broken at once
    tries little of a reader."""
    frames, names = list(recording.frames), []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if not frames:
            break
        mutate = random.choice(MUTATIONS)
        frames = [frame for frame in mutate(frames, random) if frame]
        names.append(mutate.__name__)
    return frames, names


def chunks(frames: Frames, random: Random) -> Iterator[bytes]:
    """The stream, cut into chunks at any place."""
    data = b"".join(frames)
    match random.randrange(4):
        case 0:
            yield data
        case 1:
            yield from frames
        case 2 if len(data) < 1500:
            yield from (data[at : at + 1] for at in range(len(data)))
        case _:
            cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(1, 20)))
            yield from (data[start:end] for start, end in itertools.pairwise((0, *cuts, len(data))))


def _place(frames: Frames, random: Random) -> int:
    """A frame, seldom the first one."""
    return random.randrange(len(frames)) if len(frames) == 1 or random.random() < 0.1 else random.randrange(1, len(frames))


# --- bytes ------------------------------------------------------------------------------------------------------------
def cut(frames: Frames, random: Random) -> Frames:
    at = _place(frames, random)
    return [*frames[:at], frames[at][: random.randrange(len(frames[at]) + 1)]]


def bytes_changed(frames: Frames, random: Random) -> Frames:
    at = _place(frames, random)
    frame = bytearray(frames[at])
    for _ in range(random.randrange(1, 5)):
        frame[random.randrange(len(frame))] = random.randrange(256)
    return [*frames[:at], bytes(frame), *frames[at + 1 :]]


def bytes_lost(frames: Frames, random: Random) -> Frames:
    at = _place(frames, random)
    start = random.randrange(len(frames[at]))
    rest = frames[at][start + random.randrange(1, 30) :]
    return [*frames[:at], frames[at][:start] + rest, *frames[at + 1 :]]


def bytes_added(frames: Frames, random: Random) -> Frames:
    at = _place(frames, random)
    start = random.randrange(len(frames[at]))
    added = random.choice((random.randbytes(random.randrange(1, 40)), b"\n", b"\n\n", b"\r", b"\x00", b"\xff\xfe", b"data: "))
    return [*frames[:at], frames[at][:start] + added + frames[at][start:], *frames[at + 1 :]]


def line_ends(frames: Frames, random: Random) -> Frames:
    end = random.choice((b"\r\n", b"\r", b"\n"))
    return [frame.replace(b"\r\n", b"\n").replace(b"\n", end) for frame in frames]


# --- frames -----------------------------------------------------------------------------------------------------------
def dropped(frames: Frames, random: Random) -> Frames:
    at = _place(frames, random)
    return [*frames[:at], *frames[at + random.randrange(1, 4) :]]


def doubled(frames: Frames, random: Random) -> Frames:
    at = _place(frames, random)
    return [*frames[: at + 1], *frames[at:]]


def swapped(frames: Frames, random: Random) -> Frames:
    one, other = _place(frames, random), _place(frames, random)
    frames[one], frames[other] = frames[other], frames[one]
    return frames


def endless(frames: Frames, random: Random) -> Frames:
    at = _place(frames, random)
    frame = random.choice((frames[at], b"event: ping\ndata: {}\n\n", b": comment\n\n", b"\n", b"x"))
    return (
        [*frames[:at], *itertools.repeat(frame, ENDLESS)]
        if random.random() < 0.1
        else [*frames[:at], *[frame] * 30, *frames[at:]]
    )


def strange(frames: Frames, random: Random) -> Frames:
    """A frame that no server is known to send."""
    at = _place(frames, random)
    odd = random.choice(ODD)
    before, _, behind = data_of(frames[at])
    return [*frames[:at], before + odd + behind, *frames[at:]]


ODD = (
    b"[]", b"null", b"1", b'""', b"{}", b"{not json", b"[DONE]", b'{"type": 5}', b'{"type": []}', b'{"error": {"message": 5}}',
    b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}', b'{"error": "no"}',
    b'{"type": "error"}',
    b'{"type": "content_block_delta", "index": 99, "delta": {"type": "text_delta", "text": "x"}}',
    b'{"type": "message_start", "message": {}}', b'{"type": "content_block_start", "index": 0}',
    b'{"type": "content_block_start", "index": 7, "content_block": {"type": "tool_use"}}',
    b'{"method": "turn/completed", "params": {"turn": {"id": "u"}}}', b'{"method": 5, "params": []}',
    b'{"id": {}, "method": "x"}',
    b'{"method": "error", "params": {"willRetry": true, "error": "x"}}',
)  # fmt: skip


# --- members of JSON --------------------------------------------------------------------------------------------------
def member(frames: Frames, random: Random) -> Frames:
    """One member is missing, null, of another type, huge, repeated, or has half a character."""
    at = _place(frames, random)
    before, body, behind = data_of(frames[at])
    try:
        value = json.loads(body)
    except ValueError:
        return frames
    paths = list(_paths(value))
    if not paths:
        return frames
    path = random.choice(paths)
    what = random.choice(("missing", "repeated", *VALUES))
    made = _changed(value, path, what, random)
    return [*frames[:at], before + made + behind, *frames[at + 1 :]]


VALUES: dict[str, str] = {
    "null": "null", "true": "true", "number": "7", "negative": "-1", "fraction": "0.5", "text": '"x"', "empty": '""',
    "list": "[]",
    "list of lists": "[[[]]]", "object": "{}", "huge number": "1" + "0" * 400, "infinite": "1e999", "not a number": "NaN",
    "half a character": '"\\ud800"', "other half": '"a\\udc00b"', "long": '"' + "long " * 5000 + '"',
    "deep": "[" * 500 + "]" * 500, "zero": '"\\u0000"',
}  # fmt: skip
MARK = "@@mutated@@"


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _paths(item, (*path, key))


def _changed(value: Any, path: Path, what: str, random: Random) -> bytes:
    """`value` as JSON with its member at `path` changed."""
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    former = holder[path[-1]]
    if what == "missing" or (what == "repeated" and not isinstance(holder, dict)):
        del holder[path[-1]]
        return json.dumps(value).encode()
    holder[path[-1]] = MARK
    text = json.dumps(value)
    if what == "repeated":
        other = VALUES[random.choice(list(VALUES))]
        return text.replace(f'"{MARK}"', f"{json.dumps(former)}, {json.dumps(path[-1])}: {other}").encode()
    return text.replace(f'"{MARK}"', VALUES[what]).encode()


MUTATIONS: tuple[Callable[[Frames, Random], Frames], ...] = (
    cut, bytes_changed, bytes_lost, bytes_added, line_ends, dropped, doubled, swapped, endless, strange, member, member, member,
    member, member, member,
)  # fmt: skip
