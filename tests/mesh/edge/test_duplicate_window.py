"""How long the server drops repetitions of a message id: set where the streams are made, read from them by all others."""

from __future__ import annotations

import pytest

from agentmesh.edge.manage import stream_state
from agentmesh.edge.stream_configs import DUPLICATE_WINDOW_S, stream_configs
from agentmesh.edge.streams import duplicate_window, ensure
from agentmesh.errors import ConfigMismatch, Unavailable
from agentmesh.subjects import Subjects
from support import Server, connected, run


def test_it_is_two_minutes_unless_it_is_set(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            assert await duplicate_window(t, subjects) == DUPLICATE_WINDOW_S == 120

    run(main())


def test_who_sets_none_takes_what_is_there_and_who_sets_another_is_told(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects, duplicate_window_s=7)
            await ensure(t, subjects)
            await ensure(t, subjects, duplicate_window_s=7)
            assert await duplicate_window(t, subjects) == 7
            for name in stream_configs(subjects, replicas=1, max_payload=t.max_payload):
                assert (await stream_state(t, name)).config["duplicate_window"] == 7_000_000_000
            with pytest.raises(ConfigMismatch) as error:
                await ensure(t, subjects, duplicate_window_s=5)
            assert error.value.details["field"] == "duplicate_window"
            await ensure(t, subjects, duplicate_window_s=9)
            assert await duplicate_window(t, subjects) == 9, "a longer one takes nothing away"

    run(main())


def test_outcomes_are_not_kept_for_less_than_the_window(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects, duplicate_window_s=600, results_age_s=60)
            assert await duplicate_window(t, subjects) == 600
            assert (await stream_state(t, subjects.stream("result"))).config["duplicate_window"] == 60_000_000_000

    run(main())


def test_without_streams_it_cannot_be_told(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            with pytest.raises(Unavailable, match="start the mesh"):
                await duplicate_window(t, subjects)

    run(main())
