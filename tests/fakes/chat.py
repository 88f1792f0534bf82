"""How an answer of the fake model server looks in Chat Completions (`fakes.messages` serves both)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from fakes.answers import Answer

FINISH = {"tool_use": "tool_calls", "end_turn": "stop", "max_tokens": "length", "refusal": "content_filter"}
CODES = {400: "bad_request", 401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


def completion_of(answer: Answer, model: str, tool_id: Callable[[], str]) -> dict[str, Any]:
    """The answer in one piece."""
    calls = [
        {
            "id": tool.id or tool_id(),
            "type": "function",
            "function": {"name": tool.name, "arguments": json.dumps(tool.input) if tool.sent is None else tool.sent},
        }
        for tool in answer.tools
    ]
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    if answer.thinking:
        message["reasoning_content"] = answer.thinking
    if calls:
        message["tool_calls"] = calls
    stop = answer.stop_reason or ("tool_use" if calls else "end_turn")
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": FINISH.get(stop, stop)}],
        "usage": {
            "prompt_tokens": answer.input_tokens + answer.cache_read,
            "completion_tokens": answer.output_tokens,
            "prompt_tokens_details": {"cached_tokens": answer.cache_read},
        },
    }


def chunks_of(completion: dict[str, Any], size: int, *, usage: bool) -> Iterator[str]:
    """The data of the events that stream `completion`."""
    head = {"id": completion["id"], "object": "chat.completion.chunk", "model": completion["model"]}
    choice = completion["choices"][0]

    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        return json.dumps({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    yield chunk({"role": "assistant", "content": None})
    message = choice["message"]
    for name in ("reasoning_content", "content"):
        text = message.get(name) or ""
        for at in range(0, len(text), size):
            yield chunk({name: text[at : at + size]})
    for index, call in enumerate(message.get("tool_calls", ())):
        text = call["function"]["arguments"]
        yield chunk({"tool_calls": [{**call, "index": index, "function": {"name": call["function"]["name"], "arguments": ""}}]})
        for at in range(0, len(text), size):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": text[at : at + size]}}]})
    yield chunk({}, choice["finish_reason"])
    if usage:
        yield json.dumps({**head, "choices": [], "usage": completion["usage"]})
    yield "[DONE]"


def chat_error(status: int, kind: str, message: str) -> dict[str, Any]:
    """The body of a refusal."""
    return {"error": {"message": message, "type": kind, "param": None, "code": CODES.get(status)}}
