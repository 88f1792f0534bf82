"""Members of what an API sends, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from agentmesh.strict_json import NotJson, strictly
from agentmesh_node.backends.api.failures import Api
from agentmesh_node.backends.api.frames import Frame

type JsonObject = dict[str, Any]
MOST_COUNT = 2**53
type Count = Annotated[int, msgspec.Meta(ge=1)]
"""An option that is a number of things, one at least."""
type Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
"""An option that is a time."""


def word(value: Any) -> str | None:
    """`value` if it is text."""
    return value if isinstance(value, str) else None


def number(value: Any) -> int:
    """`value` if it is a count; else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_COUNT else 0


def event_in(frame: Frame, api: Api, secrets: tuple[str, ...]) -> JsonObject:
    """The object that a frame of a stream has.

    Raises:
        BackendError: it has none; of a frame that calls itself an error, what that says.
    """
    try:
        data = strictly(frame.data)
    except NotJson as error:
        if frame.event == "error":
            raise api.told(frame.data, secrets) from None
        raise api.unreadable(f"an event is no JSON ({error})") from None
    if not isinstance(data, dict):
        raise api.unreadable("an event is no object")
    return data


class Members:
    """Reads the members of an API's objects.

    Raises:
        BackendError: each method, where what is read is not there or has another type.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    def object(self, data: Mapping[str, Any], name: str) -> JsonObject:
        """The object that stands under `name`."""
        value = data.get(name)
        if not isinstance(value, dict):
            raise self._api.unreadable(f"{name} is missing or no object")
        return value

    def text(self, data: Mapping[str, Any], name: str) -> str:
        """The text that stands under `name`."""
        value = data.get(name)
        if not isinstance(value, str):
            raise self._api.unreadable(f"{name} is missing or no text")
        return value
