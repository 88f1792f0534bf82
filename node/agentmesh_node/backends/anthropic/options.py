"""The options of the anthropic backend: `Init(state, backend={...})`. They are journaled, so none of them is a secret.

Address and credentials are no options: they come from the node's environment, so that a caller who may start an agent cannot make
the node send its key elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from agentmesh_node.backends.api import options as api_options
from agentmesh_node.backends.api.options import ApiOptions
from agentmesh_node.backends.api.values import Count

DEFAULT_MODEL = "claude-sonnet-5-5"


_BETAS = {
    "clear_tool_uses_20250919": "context-management-2025-06-27",
    "clear_thinking_20251015": "context-management-2025-06-27",
    "compact_20260112": "compact-2026-01-12",
}
"""The beta feature that an edit of the context needs."""


class AnthropicOptions(ApiOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the `anthropic` backend. Fields without a description are passed to the API as they are."""

    model: str = DEFAULT_MODEL
    max_tokens: Count = 8192
    """Most tokens of one answer."""
    system: str | list[dict[str, Any]] | None = None
    thinking: dict[str, Any] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Count | None = None
    stop_sequences: list[str] | None = None
    tool_choice: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    server_tools: list[dict[str, Any]] = []
    """Tools that the API itself runs (web search and the like), in addition to the agent's own."""
    cache: Literal["5m", "1h"] | bool = True
    """Prompt caching of the part of a conversation that is sent again: on, off, or on with this lifetime."""
    context_management: dict[str, Any] | None = None
    """Edits of long histories by the API, as `{"edits": [...]}`."""
    compact_at: Annotated[int, msgspec.Meta(ge=50_000)] | None = None
    """Input tokens at which the API replaces the history by a summary; the session then begins with that."""
    betas: list[str] = []
    """Beta features to switch on; those that `context_management` needs are added."""

    def parameters(self) -> dict[str, Any]:
        """The parameters of every request, apart from messages and tools."""
        found: dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens, "timeout": self.timeout_s}
        for name in _PASSED:
            value = getattr(self, name)
            if value is not None:
                found[name] = value
        # The SDK has dropped these from its signature; models that still take them get them in the body.
        extra = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k") if getattr(self, name) is not None}
        if extra:
            found["extra_body"] = extra
        if self.cache:
            lifetime = {"ttl": self.cache} if isinstance(self.cache, str) else {}
            found["cache_control"] = {"type": "ephemeral", **lifetime}
        edits = self._edits()
        if edits:
            found["context_management"] = {**(self.context_management or {}), "edits": edits}
        betas = dict.fromkeys([*self.betas, *(_BETAS[edit["type"]] for edit in edits if edit.get("type") in _BETAS)])
        if betas:
            found["betas"] = list(betas)
        return found

    def _edits(self) -> list[dict[str, Any]]:
        edits = list((self.context_management or {}).get("edits", ()))
        if self.compact_at is not None:
            edits.append({"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": self.compact_at}})
        return edits


_PASSED = ("system", "thinking", "stop_sequences", "tool_choice", "output_config", "metadata", "service_tier")


def read(given: Mapping[str, Any]) -> AnthropicOptions:
    """The options in `given`. Raises as `agentmesh_node.backends.api.options.read`."""
    return api_options.read(AnthropicOptions, given, "anthropic")
