"""How an answer ends, whichever of the two APIs gave it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentmesh.unicode import well_formed
from agentmesh_node.backends.api.values import JsonObject, number
from agentmesh_node.backends.openai.failures import failure
from agentmesh_node.tools import Call
from agentmesh_node.tools.loop_steps import ModelAnswer

CUT = frozenset({"length", "max_tokens", "max_output_tokens"})
"""Stop reasons of an answer that was cut off at its limit."""
DECLINED = frozenset({"content_filter", "refusal"})
NOT_JSON = "INVALID_JSON"
"""The name under which an input that is no JSON goes back to the model: some servers read the arguments of earlier calls."""


def ended(
    *,
    stop: str | None,
    text: str,
    thinking: str,
    refusal: str,
    calls: tuple[Call, ...],
    items: Sequence[JsonObject] = (),
    model: str,
    usage: dict[str, int],
    most_tokens: int | None,
) -> ModelAnswer:
    """The answer that these make.

    Args:
        stop: why it ended, in the API's terms; None if it did not say.
        refusal: what the model says that it will not do.
        items: reasoning to be sent again.
        most_tokens: the limit that was asked for. Some servers do not say that it was reached.

    Raises:
        BackendError: it is of no use: `refused`, `max_tokens`, `stream_broken`.
    """
    if stop is None:
        raise failure("stream_broken", "the API's answer ended too early")
    if stop in DECLINED or (refusal and not text and not calls):
        raise failure("refused", "the model refuses to answer this" + (f": {refusal}" if refusal else ""))
    at_limit = most_tokens is not None and usage.get("output_tokens", 0) >= most_tokens
    broken = any(call.unfit is not None for call in calls)
    if (stop in CUT and calls) or (at_limit and broken):
        raise failure("max_tokens", "the answer was cut off in the middle of a tool call", text=well_formed(text) or None)
    if stop in CUT and not text.strip():
        raise failure("max_tokens", "the answer was cut off before its first word")
    cut = stop in CUT or (at_limit and not calls)
    return ModelAnswer(
        message=message(text, thinking, calls, items),
        text=text,
        thinking=thinking,
        calls=calls,
        stop="max_tokens" if cut else "tool_use" if calls else "end_turn",
        model=model,
        usage=usage,
    )


def message(text: str, thinking: str, calls: Sequence[Call], items: Sequence[JsonObject]) -> JsonObject | None:
    """The answer as the session keeps it; None if it is empty: the APIs refuse that in a history."""
    if not (text.strip() or calls):
        return None
    found: JsonObject = {"role": "assistant", "text": text}
    if calls:
        found["calls"] = [{"id": call.id, "name": call.name, "arguments": _arguments(call)} for call in calls]
    if thinking:
        found["reasoning"] = thinking
    if items:
        found["items"] = list(items)
    return found


def _arguments(call: Call) -> str:
    return json.dumps(call.input if call.unfit is None else {NOT_JSON: call.input})


def counted(usage: Any, read: str, written: str) -> dict[str, int]:
    """The tokens of one call.

    Args:
        read, written: how the API calls what went in and what came out.
    """
    if not isinstance(usage, Mapping):
        return {}
    details = usage.get(f"{read}_details")
    cached = number(details.get("cached_tokens")) if isinstance(details, Mapping) else 0
    fresh = max(0, number(usage.get(read)) - cached)
    return {"input_tokens": fresh, "output_tokens": number(usage.get(written)), "cache_read_input_tokens": cached}
