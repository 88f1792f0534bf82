"""The options of the openai backend: `Init(state, backend={...})`. They are journaled, so none of them is a secret.

Address and credentials are no options: they come from the node's environment (OPENAI_BASE_URL, OPENAI_API_KEY), so that a caller
who may start an agent cannot make the node send its key elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from agentmesh.structured import AnswerType
from agentmesh_node.backends.api import options as api_options
from agentmesh_node.backends.api.options import ApiOptions
from agentmesh_node.backends.api.values import Count

_NO_NAME = re.compile(r"[^A-Za-z0-9_-]")
DEFAULT_MODEL = "gpt-5.4"


class OpenAIOptions(ApiOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the `openai` backend. Fields without a description are passed to the server as they are."""

    model: str = DEFAULT_MODEL
    api: Literal["chat", "responses"] = "chat"
    """Chat Completions, which nearly every server speaks, or Responses."""
    system: str | None = None
    max_tokens: Count | None = None
    """Most tokens of one answer; None is the server's own bound."""
    max_tokens_as: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """The name under which a server of Chat Completions knows that bound."""
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: list[str] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    """Structured output, in the form of Chat Completions; for Responses it becomes `text.format`."""
    reasoning_effort: str | None = None
    """How much the model reasons. With Responses what it reasoned is kept, encrypted, and sent again."""
    send_reasoning: bool = False
    """Send what a model reasoned back with its answers (`reasoning_content`): some servers want it, others refuse it."""
    service_tier: str | None = None
    metadata: dict[str, str] | None = None
    server_tools: list[dict[str, Any]] = []
    """Tools that the server itself runs, in addition to the agent's own."""
    extra: dict[str, Any] = {}
    """Further members of the request's body, by their names."""
    leave_out: list[str] = []
    """Members of the request's body that the server does not know: they are never sent."""

    def parameters(self) -> dict[str, Any]:
        """The members of every request's body, apart from messages and tools."""
        found: dict[str, Any] = {"model": self.model, "stream": True}
        found.update({name: value for name in _PASSED if (value := getattr(self, name)) is not None})
        (self._for_chat if self.api == "chat" else self._for_responses)(found)
        return found | self.extra

    @property
    def format_name(self) -> str:
        """The member of a request that says what form the answer is to have."""
        return "response_format" if self.api == "chat" else "text"

    def asking(self, answer_type: AnswerType[Any]) -> dict[str, Any]:
        """The members of a request that ask for an answer of this type."""
        # A schema that not all can be held to is given whole: servers that make grammars of schemas know more than others.
        schema, strict = answer_type.strict or answer_type.schema, answer_type.strict is not None
        name = _NO_NAME.sub("_", answer_type.name)[:64]
        return self._formatted({"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": strict}})

    def _formatted(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The member for a format that is given in the form of Chat Completions."""
        if self.api == "chat":
            return {self.format_name: wanted}
        inner = wanted.get("json_schema")
        return {self.format_name: {"format": {"type": "json_schema", **inner} if isinstance(inner, dict) else wanted}}

    def sent(self, body: dict[str, Any]) -> dict[str, Any]:
        """`body` without what is left out."""
        return {name: value for name, value in body.items() if name not in self.leave_out}

    def _for_chat(self, found: dict[str, Any]) -> None:
        found["stream_options"] = {"include_usage": True}
        if self.max_tokens is not None:
            found[self.max_tokens_as] = self.max_tokens
        for name in ("stop", "seed", "response_format", "reasoning_effort"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)

    def _for_responses(self, found: dict[str, Any]) -> None:
        found["store"] = False  # the journal has the conversation
        if self.system is not None:
            found["instructions"] = self.system
        if self.max_tokens is not None:
            found["max_output_tokens"] = self.max_tokens
        if self.reasoning_effort is not None:
            found["reasoning"] = {"effort": self.reasoning_effort, "summary": "auto"}
            found["include"] = ["reasoning.encrypted_content"]
        if self.response_format is not None:
            found.update(self._formatted(self.response_format))


_PASSED = ("temperature", "top_p", "tool_choice", "parallel_tool_calls", "service_tier", "metadata")


def read(given: Mapping[str, Any]) -> OpenAIOptions:
    """The options in `given`. Raises as `agentmesh_node.backends.api.options.read`."""
    options = api_options.read(OpenAIOptions, given, "openai")
    unknown = [name for name in ("stop", "seed") if options.api == "responses" and getattr(options, name) is not None]
    if unknown:
        raise api_options.unusable("openai", f"{unknown[0]} is none that Responses knows; leave it out, or choose api='chat'")
    return options
