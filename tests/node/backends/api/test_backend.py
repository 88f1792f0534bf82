"""Sessions of the backends on an API: each has a name of its own for its conversation."""

from __future__ import annotations

import pytest

from agentmesh_node.backends.anthropic import AnthropicBackend
from agentmesh_node.backends.api.backend import ApiBackend
from agentmesh_node.backends.openai import OpenAIBackend
from node.backends.conversation import Plain
from support import run

BACKENDS: list[type[AnthropicBackend] | type[OpenAIBackend]] = [AnthropicBackend, OpenAIBackend]


def test_no_two_have_the_same_name_for_it() -> None:
    assert all(issubclass(one, ApiBackend) for one in BACKENDS)
    assert len({one.KEPT for one in BACKENDS}) == len(BACKENDS)


@pytest.mark.parametrize("own", BACKENDS)
def test_a_conversation_goes_on_and_anothers_does_not(own: type[AnthropicBackend] | type[OpenAIBackend]) -> None:
    async def main() -> None:
        backend = own(Plain(), {})
        session = await backend.start_session()
        assert await backend.resume_session(session) is session
        for other in BACKENDS:
            if other is not own:
                theirs = await other(Plain(), {}).start_session()
                assert (await backend.resume_session(theirs))[own.KEPT] == []
        assert (await backend.resume_session(None))[own.KEPT] == []
        await backend.release()

    run(main())
