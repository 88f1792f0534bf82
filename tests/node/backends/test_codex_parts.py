"""Parts of the codex backend without the program: what is kept of a thread, what its errors mean, what is removed."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.errors import BackendError, NotFound
from agentmesh_node.backends.codex.homes import Home
from agentmesh_node.backends.codex.notifications import events_of, failure, tokens
from agentmesh_node.backends.codex.process import striker
from agentmesh_node.backends.codex.rollout import MAX_PARTS, File, MemoryStore, Rollout
from agentmesh_node.backends.codex.settings import configuration, merged, options_from
from agentmesh_node.backends.codex.steps import EarlierSteps
from agentmesh_node.tools import Call
from support import run

ANSWER = b'{"type":"event_msg","payload":{"type":"token_count"}}\n'


def plain(data: bytes) -> bytes:
    return data


async def stored(store: MemoryStore, rollout: Rollout) -> bytes:
    return b"".join([zlib.decompress(await store.get(name)) for name in rollout.parts])


def test_a_rollout_is_stored_as_it_grows_and_put_back(tmp_path: Path) -> None:
    async def main() -> None:
        store, path = MemoryStore(), "sessions/r.jsonl"
        file = File(tmp_path / "n1", store, plain)
        place = tmp_path / "n1" / path
        place.parent.mkdir(parents=True)
        counts = []
        for number in range(2 * MAX_PARTS):
            with place.open("ab") as lines:
                lines.write(b'{"line":%d}\n{"half' % number)
            rollout = await file.save(path)
            assert rollout is not None
            counts.append(len(rollout.parts))
            assert await stored(store, rollout) == place.read_bytes()[: -len(b'{"half')]
            place.write_bytes(place.read_bytes()[: -len(b'{"half')])
        assert max(counts) == MAX_PARTS
        assert rollout is not None
        other = File(tmp_path / "n2", store, plain)
        await other.restore(rollout)
        assert (tmp_path / "n2" / path).read_bytes() == place.read_bytes()
        again = await other.save(path)
        assert again == rollout, "nothing is new"

    run(main())


def test_a_rollout_that_was_rewritten_is_stored_whole(tmp_path: Path) -> None:
    async def main() -> None:
        store = MemoryStore()
        file = File(tmp_path, store, plain)
        (tmp_path / "r").write_bytes(b"one\ntwo\n")
        await file.save("r")
        (tmp_path / "r").write_bytes(b"other\n")
        rollout = await file.save("r")
        assert rollout is not None
        assert await stored(store, rollout) == b"other\n"

    run(main())


def test_a_copy_waits_until_the_file_tells_of_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmesh_node.backends.codex.rollout.SETTLE_S", 0.05)

    async def main() -> None:
        file = File(tmp_path, MemoryStore(), plain)
        (tmp_path / "r").write_bytes(ANSWER)
        assert await file.save("r", counted=2) is None
        (tmp_path / "r").write_bytes(ANSWER * 2)
        assert await file.save("r", counted=2) is not None
        assert file.answers() == 2

    run(main())


def test_a_rollout_lies_within_its_home(tmp_path: Path) -> None:
    async def main() -> None:
        store = MemoryStore()
        name = await store.put(zlib.compress(b"x\n"))
        file = File(tmp_path / "home", store, plain)
        with pytest.raises(BackendError):
            await file.restore(Rollout("../outside", (name,)))
        assert not (tmp_path / "outside").exists()
        with pytest.raises(NotFound):
            await file.restore(Rollout("r", ("gone",)))

    run(main())


@given(st.binary(), st.binary(), st.text(min_size=1, alphabet=st.characters(codec="utf-8")))
def test_a_secret_is_struck_wherever_it_stands(before: bytes, after: bytes, secret: str) -> None:
    assert secret.encode() not in striker([secret])(before + secret.encode() + after) or secret in "***"


def test_homes_of_dead_processes_are_removed_and_others_are_not(tmp_path: Path) -> None:
    living = Home(tmp_path)
    dead = tmp_path / "turn-dead"
    dead.mkdir()
    (dead / ".lock").touch()
    other = Home(tmp_path)
    assert living.path.exists()
    assert not dead.exists()
    living.remove()
    living.remove()
    other.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("info", "message", "reason", "after"),
    [
        ("rateLimitExceeded", "try again in 20ms", "rate_limited", 0.02),
        ("rateLimitExceeded", "slow down", "rate_limited", 10.0),
        ({"responseTooManyFailedAttempts": {"httpStatusCode": 429}}, "m", "rate_limited", 10.0),
        ({"httpConnectionFailed": {"httpStatusCode": None}}, "m", "connection", 5.0),
        ({"httpConnectionFailed": {"httpStatusCode": 401}}, "try again in 3 s", "unauthenticated", None),
        ("other", "stream disconnected before completion", "stream_broken", 1.0),
        ("other", "whatever", "failed", None),
        ("other", '{"error": {"type": "invalid_request_error", "message": "no"}}', "bad_request", None),
        ("badRequest", "Your input exceeds the context window of this model", "too_long", None),
        (
            "other",
            "stream disconnected before completion: Incomplete response returned, reason: max_output_tokens",
            "max_tokens",
            None,
        ),
        ("rateLimitExceeded", "No deployments available, Try again in 5 seconds.", "rate_limited", 5.0),
        ([], "unexpected status 503 Service Unavailable: x, url: http://127.0.0.1:9/v1", "overloaded", 10.0),
        ({"aNewOne": "text"}, "m", "failed", None),
        (None, "", "failed", None),
        (7, "m", "failed", None),
    ],
)
def test_errors_have_reasons(info: Any, message: str, reason: str, after: float | None) -> None:
    error = failure({"message": message, "codexErrorInfo": info})
    assert (error.details["reason"], error.details.get("retry_after_s")) == (reason, after)
    assert error.details["retryable"] == (after is not None)
    assert error.message
    assert "{" not in error.message
    assert "url:" not in error.message


def test_tokens_are_counted_as_by_all_backends() -> None:
    last = {"inputTokens": 100, "cachedInputTokens": 60, "cacheWriteInputTokens": 10, "outputTokens": 7}
    assert tokens({"last": last, "total": {}}) == {
        "input_tokens": 30, "output_tokens": 7, "cache_read_input_tokens": 60, "cache_write_input_tokens": 10,
    }  # fmt: skip
    assert tokens({}) == {"input_tokens": 0, "output_tokens": 0}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
METHODS = st.sampled_from(["item/started", "item/completed", "item/agentMessage/delta", "thread/new/thing"])
TYPES = st.sampled_from(["commandExecution", "fileChange", "mcpToolCall", "dynamicToolCall", "webSearch", "agentMessage", "new"])


@given(METHODS, TYPES, st.dictionaries(st.sampled_from(["aggregatedOutput", "result", "contentItems", "error", "status"]), JSON))
def test_items_of_any_shape_are_understood_or_passed_over(method: str, kind: str, fields: dict[str, Any]) -> None:
    for event in events_of(method, {"item": {"type": kind, "id": "i", **fields}, "delta": "d"}):
        assert event.kind in ("text", "tool_use", "tool_result")


def test_steps_behind_a_saved_one_are_what_may_be_repeated() -> None:
    def intent(own_id: str, word: str) -> dict[str, Any]:
        return {"step": "intent", "call": {"id": own_id, "name": "look_up", "input": {"word": word}}}

    saved = {"step": "saved", "session_id": "t", "rollout": {"path": "p", "parts": ["a"]}}
    taken = EarlierSteps([intent("1", "a"), saved, intent("2", "a"), intent("3", "b")])
    assert taken.former(Call("9", "look_up", {"word": "c"})) is None
    former = taken.former(Call("9", "look_up", {"word": "a"}))
    assert former is not None
    assert (former[0].id, former[1]) == ("2", None)
    assert taken.former(Call("9", "look_up", {"word": "a"})) is None
    assert [event.data["id"] for event in EarlierSteps([intent("1", "a"), saved, intent("2", "a")]).events()] == ["2"]


def test_what_the_agent_configures_does_not_undo_what_the_mesh_needs() -> None:
    config = {"model_provider": "other", "features": {"x": True}, "shell_environment_policy": {"exclude": ["A"]}}
    made = configuration(options_from({"key_env": "THE_KEY", "config": config}))
    assert made["model_provider"] == "mesh"
    assert made["features"] == {"x": True, "multi_agent": False}
    assert made["shell_environment_policy"] == {"exclude": ["A", "THE_KEY"]}
    assert merged({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
