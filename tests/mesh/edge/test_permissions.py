"""What a user may do is asked of the server once, and what it would refuse is refused before it is sent (case 624)."""

from __future__ import annotations

import json

import pytest

from agentmesh.edge.connection import connect
from agentmesh.edge.permissions import USER_INFO, PatternLists, Permissions, covers
from agentmesh.edge.transport import Disconnected, Message, RequestTimeout
from agentmesh.errors import NotPermitted, Unavailable
from support import Server, eventually, run


@pytest.mark.parametrize(
    ("pattern", "subject", "yes"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("a.*.c", "a.*.c", True),
        ("a.b.c", "a.*.c", False),
        ("a.*", "a.>", False),
        ("a.>", "a.>", True),
        ("a.b.c", "a.b", False),
    ],
)
def test_a_pattern_covers_what_the_server_takes_it_to_cover(pattern: str, subject: str, yes: bool) -> None:
    assert covers(pattern.split("."), subject.split(".")) is yes


def test_what_is_denied_counts_more_than_what_is_allowed_and_no_list_allows_all() -> None:
    def lists(allow: str, deny: str) -> PatternLists:
        return PatternLists([one.split(".") for one in allow.split()], [one.split(".") for one in deny.split()])

    assert lists("", "").admit("a.b") and lists("a.>", "").admit("a.b") and not lists("b.>", "").admit("a.b")
    assert not lists("a.>", "a.b").admit("a.b") and not lists("", "a.>").admit("a.b") and lists("", "a.>").admit("b")


def _config() -> str:
    lists = {"publish": {"allow": ["may.>", USER_INFO]}, "subscribe": {"allow": ["_INBOX.shop.>", "may.hear q"]}}
    silent = {"publish": {"allow": ["may.>"]}, "subscribe": {"allow": ["_INBOX.mute.>"]}}
    users = [("shop", lists), ("mute", silent), ("all", None)]
    lines = [
        f'{{ user: "{name}", password: "p"{"" if given is None else f", permissions: {json.dumps(given)}"} }}'
        for name, given in users
    ]
    return "authorization { users: [\n" + "\n".join(lines) + "\n] }"


@pytest.mark.processes
@pytest.mark.case(624)
def test_the_server_is_asked_once_for_each_connection_and_nothing_is_sent_that_it_refuses() -> None:
    async def main(server: Server) -> None:
        def url(user: str) -> str:
            return server.url.replace("//", f"//{user}:p@")

        shop = await connect(url("shop"), name="shop", heeds=True)
        access = shop.access
        assert access is not None and access.may_publish("not.mine") is None
        assert not shop.call("not.mine", timeout=5, answered=lambda reply: None), "it is not sent before that is known"
        with pytest.raises(NotPermitted) as told:
            await shop.request("not.mine", timeout=600)
        assert told.value.details["subject"] == "not.mine" and "shop" in told.value.details["user"]
        assert access.known and access.may_publish("may.x") is True and access.may_publish("not.mine") is False
        assert access.may_subscribe("may.hear") is True and access.may_subscribe("may.not") is False
        assert await access.forbids("not.mine", "nor.this") and not await access.forbids("not.mine", "may.x")
        with pytest.raises(NotPermitted):
            await shop.request_many("not.mine", timeout=600)
        assert not shop.call("not.mine", timeout=5, answered=lambda reply: None)
        assert "Violation" not in server.log

        free, mute = await connect(url("all"), name="all", heeds=True), await connect(url("mute"), name="mute", heeds=True)
        for line in (free, mute):
            assert line.access is not None and not await line.access.forbids("not.mine")
            assert line.access.may_publish("not.mine") is None and line.access.permits("not.mine")
        await eventually(lambda: server.log.count("Violation") == 1, what="the one question that is refused")

        server.kill()
        await eventually(lambda: not shop.connected, what="the end of the connection")
        assert await access.forbids("not.mine"), "without a connection a way is chosen by what held for the last one"
        with pytest.raises(Disconnected):
            await shop.request("not.mine", timeout=600)
        server.restart()
        await eventually(lambda: shop.connected and not access.known, what="another connection, which may be permitted more")
        for line in (shop, free, mute):
            await line.close()

    with Server(config=_config()) as server:
        run(main(server))


class _Answers:
    """A connection on which the server answers so, one question after the other."""

    def __init__(self, *answers: Exception | bytes) -> None:
        self._answers = list(answers)

    async def request(self, subject: str, data: bytes = b"", *, timeout: float) -> Message:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Message(subject, answer, {})


@pytest.mark.case(624)
def test_what_no_server_has_said_is_asked_again_and_a_server_that_says_nothing_is_taken_to_restrict_nothing() -> None:
    said = json.dumps({"data": {"permissions": {"publish": {"allow": ["may.>"]}}}}).encode()

    def access(*answers: Exception | bytes) -> Permissions:
        return Permissions(_Answers(*answers), lambda: "shop")  # type: ignore[arg-type]

    async def main() -> None:
        for first in (Disconnected(), RequestTimeout()):
            late = access(first, said)
            with pytest.raises(Unavailable):
                await late.learn_now()
            assert (late.known, late.told, late.may_publish("not.mine")) == (False, False, None)
            await late.learn_now()
            assert (late.known, late.confined, late.may_publish("not.mine")) == (True, True, False)
        again = access(said, Disconnected(), Disconnected(), said)
        assert await again.forbids("not.mine")
        again.forget()
        assert await again.forbids("not.mine") and not again.known and again.confined and not again.permits("may.x")
        await again.check("not.mine")
        with pytest.raises(NotPermitted):
            await again.check("not.mine")
        mute = access(RequestTimeout(), RequestTimeout())
        await mute.learn()
        await mute.learn_now()
        assert mute.known and mute.may_publish("not.mine") is None and not mute.confined

    run(main())


def test_a_connection_without_a_login_asks_nothing(server: Server) -> None:
    async def main() -> None:
        plain = await connect(server.url, name="plain", heeds=True)
        assert plain.access is None
        await plain.close()

    run(main())
