"""By which way a caller reaches an agent, and the keys of what it asks (cases 624 and 625)."""

from __future__ import annotations

import pytest

from agentmesh.edge.clock import SYSTEM
from agentmesh.errors import BadRequest, Unavailable
from agentmesh.subjects import Subjects
from agentmesh_client.ways import MOST_KEYS, Ways
from support import run

SUBJECTS = Subjects("mesh")


class Access:
    """A user that may publish to what `forbidden` does not begin."""

    confined = True
    told = True

    def __init__(self, *forbidden: str) -> None:
        self.forbidden = forbidden
        self.tries = 0

    async def learn_now(self) -> None:
        self.tries += 1
        self.told = self.tries > 2
        if not self.told:
            raise Unavailable("not yet")

    async def forbids(self, *subjects: str) -> bool:
        return all(subject.startswith(self.forbidden) for subject in subjects)

    def may_subscribe(self, subject: str) -> bool:
        return not subject.startswith(self.forbidden)


@pytest.mark.case(624)
def test_without_a_login_all_goes_as_mail_and_with_one_as_the_lists_say() -> None:
    async def main() -> None:
        free, mail, none = (Ways(SUBJECTS, SYSTEM, access) for access in (None, Access("$JS"), Access("mesh.inbox", "$JS")))  # type: ignore[arg-type]
        assert [await ways.by_request("a") for ways in (free, mail, none)] == [False, False, True]
        assert [await ways.by_request("a", "notify") for ways in (free, mail, none)] == [False, False, False]
        assert [await ways.asks_for_results("a", "1") for ways in (free, mail, none)] == [False, True, True]
        denied = Access("mesh.inbox")
        denied.confined = False
        assert not await Ways(SUBJECTS, SYSTEM, denied).by_request("a"), "who is denied the mail is not shown another way"  # type: ignore[arg-type]
        assert free.may_hear("mesh.inbox.a") and not none.may_hear("mesh.inbox.a")

    run(main())


@pytest.mark.case(624)
def test_no_way_is_chosen_before_a_server_has_said_what_the_user_may_do() -> None:
    async def main() -> None:
        late = Access("mesh.inbox")
        late.told = False
        assert await Ways(SUBJECTS, SYSTEM, late).by_request("a"), "a guess would have been the mail"  # type: ignore[arg-type]
        assert late.tries == 3
        never = Access("mesh.inbox")
        never.told, never.tries = False, -1_000_000
        with pytest.raises(Unavailable):
            await Ways(SUBJECTS, SYSTEM, never).by_request("a", timeout=0.05)  # type: ignore[arg-type]

    run(main())


@pytest.mark.case(625)
def test_the_clients_of_a_user_have_one_key_for_each_agent_and_those_of_another_user_have_others() -> None:
    async def main() -> None:
        def ways(user: str | None) -> Ways:
            secret = (lambda purpose: None) if user is None else (lambda purpose: f"{user} {purpose}")
            return Ways(SUBJECTS, SYSTEM, Access("mesh.inbox"), secret)  # type: ignore[arg-type]

        shop, again, bank, nameless, other = ways("shop"), ways("shop"), ways("bank"), ways(None), ways(None)
        keys = [await one.key_of("coder", "1", None) for one in (shop, again, bank, nameless, other)]
        assert keys[0] == keys[1] and len(set(keys)) == 4
        assert keys[0] != await shop.key_of("other", "1", None)
        assert shop.key_for("coder", None, by_request=True) == keys[0] and nameless.key_for("a", None, by_request=True)
        assert shop.key_for("coder", None, by_request=False) is None
        given = "0123456789abcdef"
        assert shop.key_for("coder", given, by_request=True) == given == await shop.key_of("coder", "1", given)
        shop.remember("coder", "7", given)
        assert await shop.key_of("coder", "7", None) == given
        for bad in ("", "short"):
            with pytest.raises(BadRequest):
                shop.key_for("coder", bad, by_request=True)
            with pytest.raises(BadRequest):
                await shop.key_of("coder", "1", bad)
        for number in range(MOST_KEYS):
            shop.remember("coder", f"{number + 100}", given)
        assert await shop.key_of("coder", "7", None) == keys[0], "what is remembered is bounded"
        free = Ways(SUBJECTS, SYSTEM)
        assert await free.key_of("coder", "1", None) is None

    run(main())
