"""The options of the openai backend: `Init(state, backend={...})`. They are journaled, so none of them is a secret.

Address and credentials are no options: they come from the node's environment (OPENAI_BASE_URL, OPENAI_API_KEY), so that a caller
who may start an agent cannot make the node send its key elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from agentmesh.errors import BackendError
from agentmesh_node.backends.api.values import Count, Seconds
from agentmesh_node.tools.turn_bounds import RESULT_BYTES, TOOL_RUNS

DEFAULT_MODEL = "gpt-5.4"


class OpenAIOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    timeout_s: Seconds = 600.0
    """Longest silence of the server."""
    attempts: Annotated[int, msgspec.Meta(ge=1, le=20)] = 8
    """Most tries of one model call, if the server says or implies that another try may succeed."""
    max_wait_s: Seconds = 60.0
    """Longest wait between two tries. If the server asks for more the turn ends, and the error says how long."""
    max_iterations: Count = 50
    """Most model answers in one turn."""
    parallel_tools: Count = 8
    """Most tools that run at the same time."""
    max_tool_runs: Count = TOOL_RUNS
    """Most runs of tools in one turn."""
    max_result_bytes: Count = RESULT_BYTES
    """Most bytes of all results of tools in one turn."""

    def parameters(self) -> dict[str, Any]:
        """The members of every request's body, apart from messages and tools."""
        found: dict[str, Any] = {"model": self.model, "stream": True}
        found.update({name: value for name in _PASSED if (value := getattr(self, name)) is not None})
        (self._for_chat if self.api == "chat" else self._for_responses)(found)
        return found | self.extra

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
            inner = self.response_format.get("json_schema")
            found["text"] = {"format": {"type": "json_schema", **inner} if isinstance(inner, dict) else self.response_format}


_PASSED = ("temperature", "top_p", "tool_choice", "parallel_tool_calls", "service_tier", "metadata")


def read(given: Mapping[str, Any]) -> OpenAIOptions:
    """The options in `given`.

    Raises:
        BackendError: `details["reason"]` is `bad_options`: one is unknown, or has the wrong shape.
    """
    try:
        options = msgspec.convert(dict(given), OpenAIOptions)
        options.parameters()
    except (msgspec.ValidationError, TypeError, AttributeError) as error:
        known = ", ".join(OpenAIOptions.__struct_fields__)
        raise _bad(f"{error}; it knows {known}") from None
    if options.api == "responses":
        for name in ("stop", "seed"):
            if getattr(options, name) is not None:
                raise _bad(f"{name} is none that Responses knows; leave it out, or choose api='chat'")
    return options


def _bad(why: str) -> BackendError:
    return BackendError(
        f"the options of the openai backend cannot be used: {why}", details={"reason": "bad_options", "retryable": False}
    )
