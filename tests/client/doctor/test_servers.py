"""What servers say of themselves, on their monitoring pages and to the system account."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmesh.edge.connection import connect
from agentmesh.errors import Unavailable
from agentmesh_client.doctor.servers import ahead, ailing, look
from agentmesh_client.doctor.settings import is_too_long
from support import Server, free_ports, run

ACCOUNTS = """
accounts { SYS: { users: [ { user: sys, password: s } ] }, MESH: { jetstream: enabled, users: [ { user: a, password: b } ] } }
system_account: SYS
"""


def test_a_stamp_is_compared_with_the_middle_of_the_question() -> None:
    assert ahead("1970-01-01T00:00:10.123456789Z", 4.0, 6.0) == pytest.approx(5.123456)


@pytest.mark.processes
def test_a_page_tells_settings_and_clock_and_an_interval_without_quotes_is_what_nats_makes_of_it() -> None:
    async def main(server: Server) -> None:
        (found,), source = await look([server.monitor_url], None, None)
        assert source == "the monitoring pages"
        assert (found.name, found.max_payload, found.password) == ("test", 2 << 20, False)
        assert found.version is not None and found.version.startswith("2.")
        assert found.clock_ahead_s is not None and abs(found.clock_ahead_s) < 60
        assert found.sync == "2000000s" and is_too_long(found.sync)
        assert await ailing([server.monitor_url]) == []
        with pytest.raises(Unavailable, match="is no monitoring page"):
            await look([server.url.replace("nats://", "http://")], None, None)
        with pytest.raises(Unavailable, match="is no monitoring page"):
            await ailing([server.url.replace("nats://", "http://")])

    with Server(max_payload=2 << 20, jetstream="sync_interval: 2m") as server:
        run(main(server))


@pytest.mark.processes
def test_the_system_account_tells_the_same() -> None:
    async def main(server: Server) -> None:
        (found,), source = await look([], server.url.replace("nats://", "nats://sys:s@"), None)
        assert source == "the system account"
        assert (found.name, found.sync, found.password) == ("test", "always", True)
        assert found.clock_ahead_s is not None and abs(found.clock_ahead_s) < 60
        with pytest.raises(Unavailable, match="system account"):
            await look([], server.url.replace("nats://", "nats://a:b@"), None)

    with Server(durable=True, config=ACCOUNTS) as server:
        run(main(server))


def test_without_both_only_what_mesh_up_has_written_is_known(tmp_path: Path) -> None:
    async def main() -> None:
        assert await look([], None, None) == await look([], None, tmp_path) == ([], None)
        (tmp_path / "nats").mkdir()
        (tmp_path / "nats" / "nats-server.conf").write_text('jetstream { sync_interval: "2m" }')
        (found,), source = await look([], None, tmp_path)
        assert (found.name, found.sync) == ("mesh up", "2m") and source is not None

    run(main())


@pytest.mark.parametrize("url", ["ftp://h", "http://127.0.0.1:1", "http://user:pass@127.0.0.1:x"])
def test_a_page_that_cannot_be_read_is_named_without_its_password(url: str) -> None:
    async def main() -> None:
        with pytest.raises(Unavailable) as caught:
            await look([url], None, None)
        assert "pass" not in caught.value.message

    run(main())


def test_a_page_and_a_server_that_are_not_there_are_told_in_words() -> None:
    async def main() -> None:
        (port,) = free_ports(1)
        with pytest.raises(Unavailable, match=r"cannot be read: nobody listens there$"):
            await look([f"http://127.0.0.1:{port}"], None, None)
        with pytest.raises(Unavailable, match=r"cannot be read: nobody listens there$"):
            await ailing([f"http://127.0.0.1:{port}"])
        with pytest.raises(Unavailable, match=r"\(nobody listens there\)"):
            await connect(f"nats://127.0.0.1:{port}", name="test", connect_timeout=0.3)

    run(main())
