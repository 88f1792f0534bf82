"""Checks of arguments before anything is sent: prompts, attachments, times, keys (case 19)."""

from __future__ import annotations

import base64
import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agentmesh.budget import limits_from
from agentmesh.errors import BadRequest
from agentmesh.json_values import NO_SUCH_NUMBER, not_finite
from agentmesh.structured import AnswerType, UnusableType
from agentmesh.wire import Attachment, PromptBody, encode, encode_prompt


def attachment(filename: str, content: bytes) -> Attachment:
    """A file to send with a prompt."""
    return Attachment(filename=filename, content=base64.b64encode(content).decode("ascii"))


def prompt_message(
    prompt: object, metadata: Mapping[str, Any] | None = None, attachments: Sequence[Attachment] | None = None
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a prompt. The headers are the caller's to change.

    Raises:
        BadRequest: the prompt is no text, it has neither text nor attachments, or the metadata is no JSON.
    """
    if not isinstance(prompt, str):
        raise BadRequest(f"a prompt is text; this is {type(prompt).__name__}")
    if (not prompt or prompt.isspace()) and not attachments:
        raise BadRequest("the prompt is empty: give it a text, or an attachment")
    try:
        if not metadata and not attachments and prompt[0] != "{":  # the hot path: text is its own body
            return prompt.encode(), {}
        json_bytes(metadata, "the metadata")
        return encode_prompt(PromptBody(prompt=prompt, metadata=dict(metadata or {}), attachments=tuple(attachments or ())))
    except UnicodeEncodeError:
        raise BadRequest("the prompt holds characters that UTF-8 cannot carry (lone surrogates)") from None
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise BadRequest(f"the prompt's metadata or attachments are no JSON: {error}") from None


def json_bytes(value: object, what: str) -> bytes:
    """JSON of the argument `value`; errors call it `what`.

    Raises:
        BadRequest: it has no JSON form.
    """
    try:
        body = msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise BadRequest(f"{what} cannot be written as JSON: {error}") from None
    if (fault := not_finite(value, body)) is not None:
        raise BadRequest(f"{what} cannot be written as JSON: {fault}, {NO_SUCH_NUMBER}")
    return body


def answer_type_of(given: type[Any] | None) -> AnswerType[Any] | None:
    """The type that a caller wants its answer to have.

    Raises:
        BadRequest: it cannot be the type of an answer.
    """
    try:
        return None if given is None else AnswerType(given)
    except UnusableType as error:
        raise BadRequest(f"answer_type: {error}") from None


def seconds(value: object, what: str = "timeout") -> float:
    """`value` if it is a time span that can be waited for: a finite number above 0.

    Raises:
        BadRequest: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise BadRequest(f"{what} is a number of seconds above 0; this is {value!r}")
    return float(value)


def budget_header(budget: Mapping[str, float]) -> str:
    """The header `Mesh-Budget` for bounds by name.

    Raises:
        BadRequest: a bound is unknown, or is not a number of at least 0.
    """
    return encode(limits_from(budget)).decode()


def instant(moment: dt.datetime, what: str) -> str:
    """RFC 3339 of `moment`.

    Raises:
        BadRequest: it is no datetime, has no time zone, or lies beyond the year 9999.
    """
    if not isinstance(moment, dt.datetime) or moment.tzinfo is None:
        raise BadRequest(f"{what} is a datetime with a time zone (datetime.now(timezone.utc) + ...)")
    try:
        utc = moment.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise BadRequest(f"{what} is a time between the years 1 and 9999") from None
    return utc.isoformat(timespec="microseconds").replace("+00:00", "Z")
