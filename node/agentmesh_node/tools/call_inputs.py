"""The input of a tool call, from the text that the model sent: only a whole JSON object is one (case 400).

Models are cut off in the middle of a call, gateways report a cut answer as complete, and SDKs close what was left open: 5,000
becomes 5. So the text itself is read, strictly, and what cannot be read is told to the model instead of being guessed.
"""

from __future__ import annotations

from typing import Any

from agentmesh.strict_json import NotJson, checked, strictly, whole_characters

SHOWN = 200
"""Most characters of an input that cannot be used that its complaint repeats."""


def input_of(text: str) -> dict[str, Any]:
    """The input that `text` is.

    Raises:
        NotJson: it is not one whole JSON object of whole characters.
    """
    value = strictly(whole_characters(text))
    if not isinstance(value, dict):
        raise NotJson("it is no object")
    return checked(value)
