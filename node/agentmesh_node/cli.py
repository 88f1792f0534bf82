"""The hosting verbs of the `mesh` command: `up`, `setup`, `node`, `supervisor`, `models`.

They are entry points of the group `agentmesh.commands`, so that the client's command finds them without importing this package.
Each returns its exit code: 0 after an orderly end, 1 failed, 2 wrong use, 5 no NATS server, 6 not permitted, 130 interrupted.
They import what they need when they run: `mesh --help` loads only this file.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from agentmesh_node.process.options import (
    CommonOptions,
    LoginOptions,
    NodeOptions,
    StreamOptions,
    SupervisorOptions,
    UpOptions,
    within,
)

if TYPE_CHECKING:
    from agentmesh_node.process.address import MeshAddress

Nats = Annotated[
    str | None, Parameter(help="NATS servers, URL[,URL...]; else MESH_NATS_URL, else .mesh/url, else 127.0.0.1:4222.")
]
Root = Annotated[str | None, Parameter(help="The mesh's root token; else MESH_ROOT, else 'mesh'.")]
Domain = Annotated[
    str | None,
    Parameter(help="JetStream domain of the mesh, if its server is behind a leaf node; else MESH_DOMAIN, else the server's own."),
]
Replicas = Annotated[
    int | None, within(1, 5, "Copies of each stream that is made; by default 3 on three or more servers, else 1.")
]
WaitSeconds = Annotated[float, within(0, 86_400, "Seconds to wait for a server that is not there yet.", whole=False)]
NodeLabels = Annotated[
    tuple[str, ...],
    Parameter(name="--label", negative="", show_default=False, help="KEY=VALUE that agents may ask for; repeatable."),
]
HealthPort = Annotated[
    int | None, within(0, 65_535, "Serve liveness (/livez), readiness (/readyz) and metrics (/metrics) over HTTP on this port.")
]
MetricsPort = Annotated[
    int | None,
    within(0, 65_535, "Serve metrics for Prometheus (/metrics) on this port; of several workers each on the next one."),
]
NodeModel = Annotated[
    str | None,
    Parameter(
        help="Address of a server of models that speaks for scripted, anthropic and openai agents; its key is MESH_MODEL_KEY."
    ),
]
UpModel = Annotated[
    str | None,
    Parameter(
        help="What speaks for scripted, anthropic and openai agents: 'local', a small model that runs here, or the address of a "
        "server of models; its key is MESH_MODEL_KEY."
    ),
]
ModelName = Annotated[str | None, Parameter(help="Which model of that server; by default the only one it has.")]
CheckModels = Annotated[
    bool,
    Parameter(
        name="--check", negative="", show_default=False, help="Call the models of its agents once, and start only if all answer."
    ),
]
NODE, UP, SUPERVISOR, STREAMS, COMMON = NodeOptions(), UpOptions(), SupervisorOptions(), StreamOptions(), CommonOptions()
LOGIN = LoginOptions()


def up(
    agents: Annotated[list[str], Parameter(help="Modules or files with the agents' classes.")],
    /,
    *,
    port: Annotated[int, Parameter(help="Port of the NATS server on 127.0.0.1; 0 takes a free one.")] = 4222,
    data: Annotated[Path, Parameter(help="Directory of everything that lasts.")] = Path(".mesh"),
    sync_interval: Annotated[
        str, Parameter(help="When data reaches the disk: 'always' survives a power cut, '2m' is faster.")
    ] = "always",
    reload: Annotated[
        bool, Parameter(negative="", show_default=False, help="Start again when a Python file beside the agents changes.")
    ] = False,
    secure: Annotated[
        bool,
        Parameter(negative="", show_default=False, help="Know users by their roles, and refuse all others."),
    ] = False,
    model: UpModel = None,
    model_name: ModelName = None,
    check: CheckModels = False,
    root: Root = None,
    metrics_port: MetricsPort = None,
    options: UpOptions = UP,
    leader: SupervisorOptions = SUPERVISOR,
    store: StreamOptions = STREAMS,
    common: CommonOptions = COMMON,
) -> int:
    """Run a whole mesh here: NATS server, supervisor, node.

    What it stores is in the data directory, its address in `url` there, so a restart finds every agent as it was. Ctrl-C lets
    running turns end first; a second Ctrl-C does not wait for them.
    """
    if reload:
        from agentmesh_node.process.reload import Reloader, child_command, watched

        return Reloader(child_command(sys.argv[1:]), watched(agents, Path().absolute())).run()
    from agentmesh_node.process import main

    return main.up(
        agents,
        port=port,
        data=data,
        sync_interval=sync_interval,
        secure=secure,
        model=model,
        model_name=model_name,
        check=check,
        root=root,
        metrics_port=metrics_port,
        options=options,
        leader=leader,
        store=store,
        common=common,
    )


def setup(
    *,
    new: Annotated[
        bool, Parameter(negative="", show_default=False, help="Make what every mesh has, though none of it or not all is there.")
    ] = False,
    dry_run: Annotated[bool, Parameter(negative="", show_default=False, help="Say what would be done, and do nothing.")] = False,
    replicas: Replicas = None,
    nats: Nats = None,
    root: Root = None,
    domain: Domain = None,
    wait: WaitSeconds = 0.0,
    login: LoginOptions = LOGIN,
    store: StreamOptions = STREAMS,
) -> int:
    """Make the mesh's streams, or add what a newer build needs to those of an older one.

    It never removes or shrinks anything, and may run at any time. Without --new it makes nothing where the mesh should have
    streams and has none: its server may have been started without the key of an encrypted store, and making streams would then
    destroy what is stored.
    """
    from agentmesh_node.process import setup as verb

    return verb.setup(_where(nats, root, domain, wait, login), verb.settings(store, replicas), new=new, dry_run=dry_run)


def node(
    *,
    agents: Annotated[
        tuple[str, ...], Parameter(negative="", help="Modules or files with the agents' classes, joined by commas.")
    ],
    id: Annotated[str | None, Parameter(help="The node's name in the mesh; by default made from the host's.")] = None,
    label: NodeLabels = (),
    model: NodeModel = None,
    model_name: ModelName = None,
    check: CheckModels = False,
    workers: Annotated[int, within(1, 1024, "Processes to run; each is a node of its own, named ID-1, ID-2, ...")] = 1,
    health_port: HealthPort = None,
    metrics_port: MetricsPort = None,
    nats: Nats = None,
    root: Root = None,
    domain: Domain = None,
    wait: WaitSeconds = 0.0,
    login: LoginOptions = LOGIN,
    options: NodeOptions = NODE,
    common: CommonOptions = COMMON,
) -> int:
    """Run an agent node for the kinds of agent in its modules.

    SIGTERM or Ctrl-C drains it: running turns end, its agents go to other nodes, and it exits with 0.
    """
    from agentmesh_node.process import main

    where = _where(nats, root, domain, wait, login)
    command = main.NodeCommand(
        id=id,
        agents=agents,
        labels=label,
        where=where,
        options=options,
        common=common,
        model=model,
        model_name=model_name,
        check=check,
        metrics_port=metrics_port,
    )
    return main.node(command, workers=workers, health_port=health_port)


def _where(nats: str | None, root: str | None, domain: str | None, wait_s: float, options: LoginOptions) -> MeshAddress:
    from agentmesh.edge.login import Login
    from agentmesh_node.process.address import MeshAddress

    given = {name: value for name, value in asdict(options).items() if value}
    context = given.pop("context", None)
    return MeshAddress.find(nats, root, domain, wait_s=wait_s, context=context, login=Login(**given))


def models(
    *,
    model: UpModel = None,
    model_name: ModelName = None,
    check: Annotated[
        bool,
        Parameter(negative="", show_default=False, help="Make one real call of each backend on an API, which may cost a little."),
    ] = False,
    output: Annotated[Literal["text", "json"], Parameter(name=["--output", "-o"], help="How to print.")] = "text",
) -> int:
    """Show which backends and models a node started here can reach: server, key (whether it is there), price, context.

    It asks no mesh. With --check the exit code is 1 where a call fails, and a line says what to set.
    """
    from agentmesh_node.process import model_option

    return model_option.models(model, model_name, check=check, as_json=output == "json")


def worker(*, id: str) -> int:
    """Run one of the processes of `mesh node --workers`, whose keeper says on stdin what it is to be; the id shows in lists."""
    from agentmesh_node.process import main

    return main.worker(sys.stdin.buffer.read())


def supervisor(
    *,
    id: Annotated[str | None, Parameter(help="The supervisor's name in the mesh; by default made from the host's.")] = None,
    health_port: HealthPort = None,
    metrics_port: MetricsPort = None,
    nats: Nats = None,
    root: Root = None,
    domain: Domain = None,
    wait: WaitSeconds = 0.0,
    login: LoginOptions = LOGIN,
    options: SupervisorOptions = SUPERVISOR,
    common: CommonOptions = COMMON,
) -> int:
    """Run a supervisor, which places agents on nodes.

    Of several one leads, and the others stand by to go on at once when it ends.
    """
    from agentmesh_node.process import main

    where = _where(nats, root, domain, wait, login)
    return main.supervisor(id=id, where=where, health_port=health_port, metrics_port=metrics_port, options=options, common=common)
