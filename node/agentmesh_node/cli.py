"""The hosting verbs of the `mesh` command: `up`, `node`, `supervisor`.

Entry points of the group `agentmesh.commands`, so that the client's command finds them without importing this package. Each
returns its exit code: 0 after an orderly end, 1 failed, 2 wrong use, 5 no NATS server, 130 interrupted. What they
need is imported when they run: `mesh --help` reads only this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Nats = Annotated[
    str | None, Parameter(help="NATS servers, URL[,URL...]; else MESH_NATS_URL, else .mesh/url, else 127.0.0.1:4222.")
]
Root = Annotated[str | None, Parameter(help="The mesh's root token; else MESH_ROOT, else 'mesh'.")]
Replicas = Annotated[
    int | None, Parameter(help="Copies of each stream where they are made now; by default 3 on three or more servers, else 1.")
]
Wait = Annotated[float, Parameter(help="Seconds to wait for a server before giving up.")]
Labels = Annotated[
    tuple[str, ...],
    Parameter(name="--label", negative="", show_default=False, help="KEY=VALUE that agents may ask for; repeatable."),
]
HealthPort = Annotated[int | None, Parameter(help="Serve liveness (/livez) and readiness (/readyz) over HTTP on this port.")]
Capacity = Annotated[int, Parameter(help="Most agents it takes; 0 is no bound.")]
Content = Annotated[
    bool, Parameter(negative="", help="Put prompts, events and states into lifecycle events; else MESH_CONTENT, else not.")
]


def up(
    agents: Annotated[list[str], Parameter(help="Modules or files with the agents' classes.")],
    /,
    *,
    port: Annotated[int, Parameter(help="Port of the NATS server on 127.0.0.1; 0 takes a free one.")] = 4222,
    data: Annotated[Path, Parameter(help="Directory of everything that lasts.")] = Path(".mesh"),
    sync_interval: Annotated[
        str, Parameter(help="When data reaches the disk: 'always' survives a power cut, '2m' is faster.")
    ] = "always",
    capacity: Capacity = 0,
    content: Content = False,
    root: Root = None,
) -> int:
    """Run a whole mesh here: NATS server, supervisor, node.

    What it stores is in the data directory, its address in `url` there, so a restart finds every agent as it was. Ctrl-C lets
    running turns end first; a second Ctrl-C does not wait for them.
    """
    from agentmesh_node.process import main

    return main.up(agents, port=port, data=data, sync_interval=sync_interval, capacity=capacity, content=content, root=root)


def node(
    *,
    agents: Annotated[
        tuple[str, ...], Parameter(negative="", help="Modules or files with the agents' classes, joined by commas.")
    ],
    id: Annotated[str | None, Parameter(help="The node's name in the mesh; by default made from the host's.")] = None,
    capacity: Capacity = 0,
    label: Labels = (),
    content: Content = False,
    workers: Annotated[int, Parameter(help="Processes to run; each is a node of its own, named ID-1, ID-2, ...")] = 1,
    health_port: HealthPort = None,
    nats: Nats = None,
    root: Root = None,
    replicas: Replicas = None,
    wait: Wait = 10.0,
) -> int:
    """Run an agent node for the kinds of agent in its modules.

    SIGTERM or Ctrl-C drains it: running turns end, its agents go to other nodes, and it exits with 0.
    """
    from agentmesh_node.process import main

    return main.node(
        agents, id=id, capacity=capacity, labels=label, content=content,
        where=main.MeshAddress.find(nats, root, replicas=replicas, wait_s=wait),
        hosting=main.ProcessOptions(workers=workers, health_port=health_port),
    )  # fmt: skip


def supervisor(
    *,
    id: Annotated[str | None, Parameter(help="The supervisor's name in the mesh; by default made from the host's.")] = None,
    health_port: HealthPort = None,
    nats: Nats = None,
    root: Root = None,
    replicas: Replicas = None,
    wait: Wait = 10.0,
) -> int:
    """Run a supervisor, which places agents on nodes.

    Of several one leads, and the others stand by to go on at once when it ends.
    """
    from agentmesh_node.process import main

    where = main.MeshAddress.find(nats, root, replicas=replicas, wait_s=wait)
    return main.supervisor(id=id, where=where, health_port=health_port)
