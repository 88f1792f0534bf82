"""An SDK's client: shared by the agents of a loop, and closed behind the last."""

from __future__ import annotations

from agentmesh_node.backends.api.clients import Clients, Lease
from support import run


class Client:
    """An SDK's client, as far as it is looked at here."""

    def __init__(self) -> None:
        self.closed = False

    async def close(self) -> None:
        self.closed = True


def test_agents_of_a_loop_share_a_client_until_the_last_lets_it_go() -> None:
    clients = Clients(Client)

    async def check() -> None:
        first, second = Lease(clients), Lease(clients)
        client = await first.client()
        assert await second.client() is client
        assert await first.client() is client
        await first.give_back()
        await first.give_back()
        assert not client.closed
        await second.give_back()
        assert vars(client) == {"closed": True}
        again = await second.client()
        assert again is not client
        await second.give_back()

    run(check())


def test_each_loop_has_its_own() -> None:
    clients = Clients(Client)
    made = []

    async def check() -> None:
        made.append(await Lease(clients).client())

    run(check())
    run(check())
    assert made[0] is not made[1]
