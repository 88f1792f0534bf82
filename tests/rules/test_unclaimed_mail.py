"""Mail for nobody: an agent that is started has the mail, or finds it answered, never both and never neither
(docs/architecture.md#mail-for-nobody)."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

import pytest
from msgspec import structs

from agentmesh import wire
from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.journal import Journal
from agentmesh.edge.publish import store
from agentmesh.edge.registry import Registry
from agentmesh.edge.transport import Transport
from agentmesh.errors import NotFound
from agentmesh.subjects import spec_key
from agentmesh.wire import ErrorBody
from agentmesh_node.supervisor.unclaimed_mail import MARGIN_S
from agentmesh_node.supervisor.unclaimed_sweep import Moment, UnclaimedSweep
from rules.scene import Scene, play
from sim import crashes
from sim.crashes import MOMENTS, Counting, Vanished
from sim.net import SimTransport
from sim.run import registry_of
from sim.world import SETTINGS

pytestmark = pytest.mark.slow

REASON = ErrorBody(code="not_found", message="no agent has had the name")


class Sent(NamedTuple):
    """Mail for one name, by sequence."""

    prompts: list[int]
    event: int

    @property
    def all(self) -> list[int]:
        return [*self.prompts, self.event]


class Leader:
    """What sweeps, on a connection of its own."""

    def __init__(self, scene: Scene, transport: Transport) -> None:
        world = scene.world
        ambient = world.ambient("leader")
        registry, journal = Registry(transport, world.subjects), Journal(transport, world.subjects)
        self._now = ambient.now
        self._sweep = UnclaimedSweep(transport, world.subjects, registry, journal, token=ambient.token, now=ambient.now)

    async def end(self, name: str, upto: int) -> None:
        await self._sweep.end(name, upto, REASON, Moment(1, self._now() - 120.0 - MARGIN_S))


async def connected(scene: Scene, name: str) -> SimTransport:
    transport = SimTransport(scene.world.net, scene.world.process(name), name)
    await transport.open()
    return transport


async def mail(scene: Scene, transport: Transport, name: str) -> Sent:
    subjects = scene.world.subjects
    prompts = [
        (await store(transport, subjects.inbox(name), f"{text} {name}".encode(), headers={wire.REPLY_TO: "_INBOX.caller"})).seq
        for text in ("first", "second")
    ]
    return Sent(prompts, (await store(transport, subjects.notify(name), b'{"label": 1}')).seq)


def had(scene: Scene, name: str) -> list[int]:
    """The mail that an agent of that name has had, by sequence."""
    if spec_key(name) not in registry_of(scene.world):
        return []
    log = scene.seen(name)
    return [int(ref) for ref in log.refs] + [0] * len(log.events)


def dead(scene: Scene, name: str) -> list[int]:
    return [int(m.headers["Mesh-Ref"]) for m in scene.stored("dead") if m.subject == scene.world.subjects.dead(name)]


def shares(scene: Scene, name: str, sent: Sent) -> tuple[list[int], list[int]]:
    """What an agent has had of the mail, and what is dead letters."""
    taken = [sent.event if seq == 0 else seq for seq in had(scene, name)]
    return sorted(taken), sorted(dead(scene, name))


async def judged(scene: Scene, name: str, sent: Sent) -> None:
    """Each message is the agent's or a dead letter, and each prompt's one outcome says which."""

    def settled() -> bool:
        taken, buried = shares(scene, name, sent)
        return {*taken, *buried} >= {*sent.all} and scene.results(name).keys() >= {str(seq) for seq in sent.prompts}

    await scene.until(settled, f"the mail of {name} is dealt with")
    taken, buried = shares(scene, name, sent)
    assert sorted([*taken, *buried]) == sent.all, "each message is either the agent's or a dead letter, once"
    for seq in sent.prompts:
        outcome = scene.results(name)[str(seq)]
        assert outcome.ok == (seq in taken)
        assert outcome.ok or (outcome.error is not None and outcome.error.code == NotFound.code)


type Happens = Callable[[Scene, str, int], Awaitable[None]]
"""What happens at a step of a sweep: given the name, and the newest of its mail."""


async def started(scene: Scene, name: str, upto: int) -> None:
    await scene.start(name)


async def another_leader(scene: Scene, name: str, upto: int) -> None:
    with contextlib.suppress(*EDGE_ERRORS):
        await Leader(scene, await connected(scene, f"other {name}")).end(name, upto)


async def the_leader_dies(scene: Scene, name: str, upto: int) -> None:
    raise Vanished


async def the_leader_dies_and_the_name_is_started(scene: Scene, name: str, upto: int) -> None:
    await scene.start(name)
    raise Vanished


async def each_step(scene: Scene, moment: crashes.Moment, happens: Happens, afterwards: bool) -> int:
    """Sweep a name for each step, at which something happens. `afterwards`: the next leader sweeps again. Returns how many
    steps there are."""
    transport = await connected(scene, "leader")
    for step in range(1, 1000):
        name, reached = f"x{step}", False
        sent = await mail(scene, transport, name)

        def at(number: int, now: crashes.Moment, subject: str) -> Coroutine[Any, Any, None] | None:
            nonlocal reached
            if reached or (number, now) != (step, moment):  # noqa: B023 - called within this round
                return None
            reached = True
            return _happen(scene, happens, name, max(sent.all))  # noqa: B023

        with contextlib.suppress(Vanished, *EDGE_ERRORS):
            await Leader(scene, Counting(transport, at)).end(name, max(sent.all))
        if afterwards:
            await Leader(scene, transport).end(name, max(sent.all))
        await judged(scene, name, sent)
        if not reached:
            return step - 1
    raise AssertionError("a sweep has fewer steps")


async def _happen(scene: Scene, happens: Happens, name: str, upto: int) -> None:
    await happens(scene, name, upto)


@pytest.mark.case(291)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("happens", "afterwards"),
    [
        (started, False),
        (another_leader, False),
        (the_leader_dies, True),
        (the_leader_dies_and_the_name_is_started, False),
    ],
    ids=["started", "another leader", "the leader dies", "the leader dies and the name is started"],
)
def test_at_every_step_of_a_sweep_the_mail_is_the_agents_or_answered(
    moment: crashes.Moment, happens: Happens, afterwards: bool
) -> None:
    async def story(scene: Scene) -> None:
        steps = await each_step(scene, moment, happens, afterwards)
        assert steps > 15, "reads, the record, letters, outcomes, the tombstone, purges"

    play(story)


@pytest.mark.case(291)
@pytest.mark.parametrize("seed", range(4))
def test_while_leaders_die_and_names_are_started_all_mail_is_the_agents_or_answered(seed: int) -> None:
    async def story(scene: Scene) -> None:
        world = scene.world
        dice = world.dice(f"unclaimed {seed}")
        settings = structs.replace(SETTINGS, unclaimed_age_s=2.0)
        world.kill("s1")
        for name in ("u1", "u2"):
            world.supervisor(name, settings)
        transport = await connected(scene, "plain")
        sent = {f"x{number}": await mail(scene, transport, f"x{number}") for number in range(24)}
        waiting = dice.sample(sorted(sent), 16)
        while waiting:
            await pass_time(scene, dice.uniform(0.0, 0.4))
            await scene.start(waiting.pop())
            if dice.random() < 0.2:
                victim = dice.choice(("u1", "u2"))
                world.kill(victim)
                await pass_time(scene, dice.uniform(0.0, 1.0))
                world.restart(victim)
        for name, letters in sent.items():
            await judged(scene, name, letters)
        agents, nobodys = zip(*(shares(scene, name, letters) for name, letters in sent.items()), strict=True)
        assert any(agents) and any(nobodys), "there was both"

    play(story)


async def pass_time(scene: Scene, seconds: float) -> None:
    end = scene.world.loop.time() + seconds
    await scene.until(lambda: scene.world.loop.time() >= end, "time passes")
