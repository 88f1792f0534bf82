"""The index: planning only what has changed must come to what planning everything would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentmesh.edge.registry import Entry
from agentmesh.planner import plan
from agentmesh.registry_values import NodeLease, Placement, Spec
from agentmesh.subjects import node_key, placement_key, spec_key
from agentmesh.wire import encode
from agentmesh_node.supervisor.registry_index import NodeState, RegistryIndex

AGENTS = tuple(f"a{number}" for number in range(6))
NODES = ("n1", "n2", "n3")

specs = st.builds(
    lambda kind, life, status: encode(Spec(kind=kind, incarnation=life, status=status)),
    st.sampled_from(("A", "B")),
    st.sampled_from(("l1", "l2")),
    st.sampled_from(("wanted", "wanted", "running", "failed", "stopping", "stopped")),
)
leases = st.builds(
    lambda kinds, capacity, draining, agents: encode(
        NodeLease(boot="b", kinds=tuple(kinds), capacity=capacity, draining=draining, agents=agents)
    ),
    st.lists(st.sampled_from(("A", "B")), unique=True),
    st.sampled_from((0, 1, 2)),
    st.booleans(),
    st.integers(0, 3),
)
changes = st.one_of(
    st.tuples(st.builds(spec_key, st.sampled_from(AGENTS)), st.none() | specs | st.just(b"{")),
    st.tuples(st.builds(node_key, st.sampled_from(NODES)), st.none() | leases | st.just(b"{")),
    st.tuples(
        st.builds(placement_key, st.sampled_from(NODES), st.sampled_from(AGENTS)),
        st.none() | st.builds(lambda life: encode(Placement(incarnation=life)), st.sampled_from(("l1", "l2"))) | st.just(b"{"),
    ),
    st.tuples(st.sampled_from(NODES), st.sampled_from(NodeState)),
)


class Registry:
    """Gives each write its revision."""

    def __init__(self) -> None:
        self.last = 0
        self.entries: dict[str, Entry] = {}

    def write(self, key: str, value: bytes | None) -> Entry:
        self.last += 1
        entry = Entry(key, value, self.last)
        if value is None:
            self.entries.pop(key, None)
        else:
            self.entries[key] = entry
        return entry


def carry_out(index: RegistryIndex, registry: Registry) -> None:
    """Plan what is dirty and write it, until nothing is dirty, as the supervisor does."""
    for _ in range(20):
        looked_at = index.take_dirty(1000)
        if not looked_at:
            return
        made = plan(index.world(), looked_at)
        index.note_waits(looked_at, made)
        for action in made.place:
            key = placement_key(action.node, action.agent)
            assert index.revision(key) == action.revision
            index.observe(registry.write(key, encode(Placement(incarnation=action.incarnation))))
        for gone in made.remove:
            key = placement_key(gone.node, gone.agent)
            assert index.revision(key) == gone.revision
            registry.write(key, None)
            index.bury(key, gone.revision)
    raise AssertionError("it plans for ever")


def readable(index: RegistryIndex, registry: Registry) -> set[str]:
    bad = {key for key, entry in registry.entries.items() if key.startswith("agents.") and entry.value == b"{"}
    return {agent for agent in index.specs.keys() | index.placements.keys() if spec_key(agent) not in bad}


@given(st.lists(st.tuples(changes, st.booleans()), max_size=40))
def test_planning_what_has_changed_leaves_nothing_for_a_full_plan(steps: list[tuple[tuple[str, object], bool]]) -> None:
    index, registry = RegistryIndex(), Registry()
    for (key, value), pause in steps:
        if isinstance(value, NodeState):
            if index.matters(key):
                index.set_state(key, value)
        else:
            assert value is None or isinstance(value, bytes)
            index.observe(registry.write(key, value))
        if pause:
            carry_out(index, registry)
    carry_out(index, registry)
    full = plan(index.world(), readable(index, registry))
    assert (full.place, full.remove) == ((), ())
    assert {wait.agent: wait.reason for wait in full.unplaced} == {
        agent: wait.reason for agent, wait in index.waits.items() if agent in readable(index, registry)
    }


@given(st.lists(changes, max_size=40))
def test_a_census_that_missed_changes_becomes_right_again(steps: list[tuple[str, object]]) -> None:
    attentive, dozing, registry = RegistryIndex(), RegistryIndex(), Registry()
    for number, (key, value) in enumerate(steps):
        if not isinstance(value, NodeState):
            assert value is None or isinstance(value, bytes)
            if value == b"{" and key.startswith(("agents.", "nodes.")):
                continue  # what was readable before is kept, and only one of them saw it
            entry = registry.write(key, value)
            attentive.observe(entry)
            if number % 3:
                dozing.observe(entry)
    for entry in registry.entries.values():
        dozing.observe(entry)
    dozing.drop_missing(dozing.keys(), registry.entries, registry.last)
    dozing.all_dirty()
    assert dozing.world() == attentive.world()
    assert dozing.take_dirty(1000) >= dozing.specs.keys() | dozing.placements.keys()


def test_a_write_of_our_own_outlives_a_copy_that_missed_it() -> None:
    """Else the placement would be forgotten for good: the copy, once it has it, has nothing new to tell."""
    index = RegistryIndex()
    key = placement_key("n1", "a")
    index.observe(Entry(key, encode(Placement(incarnation="l1")), 7))
    index.drop_missing(index.keys(), {}, floor=6)
    assert index.placements["a"].keys() == {"n1"}
    index.drop_missing(index.keys(), {}, floor=7)
    assert "a" not in index.placements


def test_who_waits_is_looked_at_again_when_a_node_or_room_comes() -> None:
    index = RegistryIndex()
    index.observe(Entry(node_key("n1"), encode(NodeLease(boot="b", kinds=("A",), capacity=1)), 1))
    index.observe(Entry(placement_key("n1", "a"), encode(Placement(incarnation="l1")), 2))
    index.observe(Entry(spec_key("a"), encode(Spec(kind="A", incarnation="l1")), 3))
    index.observe(Entry(spec_key("b"), encode(Spec(kind="A", incarnation="l1")), 4))
    looked_at = index.take_dirty(10)
    index.note_waits(looked_at, plan(index.world(), looked_at))
    assert index.waits.keys() == {"b"}
    index.observe(Entry(node_key("n2"), encode(NodeLease(boot="b")), 5))
    assert index.take_dirty(10) == {"b"}
    index.observe(Entry(placement_key("n1", "a"), None, 6))
    assert index.take_dirty(10) == {"a", "b"}


def test_an_agent_whose_spec_cannot_be_read_is_never_planned() -> None:
    index = RegistryIndex()
    index.observe(Entry(placement_key("n1", "a"), encode(Placement(incarnation="l1")), 1))
    index.observe(Entry(spec_key("a"), b"{", 2))
    index.all_dirty()
    assert index.take_dirty(10) == set()
    index.observe(Entry(spec_key("a"), None, 3))
    assert index.take_dirty(10) == {"a"}


def test_a_key_that_is_no_agents_name_is_never_planned() -> None:
    index = RegistryIndex()
    for revision, name in enumerate(("_hidden", "a..b", ".".join("a" * 9), "good"), start=1):
        index.observe(Entry(spec_key(name), encode(Spec(kind="A", incarnation="l", status="wanted")), revision))
    index.all_dirty()
    assert index.take_dirty(10) == {"good"}


def test_old_news_changes_nothing() -> None:
    index = RegistryIndex()
    key = placement_key("n1", "a")
    value = encode(Placement(incarnation="l1"))
    index.observe(Entry(key, value, 7))
    index.observe(Entry(key, None, 6))
    assert index.placements["a"]["n1"].revision == 7
    index.bury(key, 7)  # deleted by ourselves; then the feed brings the creation
    index.observe(Entry(key, value, 7))
    assert index.placements == {}
    index.observe(Entry(key, value, 9))
    assert index.placements["a"]["n1"].revision == 9


def test_a_renewed_lease_gives_no_work() -> None:
    index = RegistryIndex()
    index.observe(Entry(node_key("n1"), encode(NodeLease(boot="b", kinds=("A",))), 1))
    index.observe(Entry(placement_key("n1", "a"), encode(Placement(incarnation="l1")), 2))
    index.take_dirty(10)
    index.observe(Entry(node_key("n1"), encode(NodeLease(boot="b", kinds=("A",), agents=5)), 3))
    assert index.dirty == 0
    index.observe(Entry(node_key("n1"), encode(NodeLease(boot="b", kinds=("A",), cordoned=True)), 4))
    assert index.take_dirty(10) == {"a"}


def test_much_to_look_at_comes_in_parts() -> None:
    index = RegistryIndex()
    index.mark(f"a{number}" for number in range(25))
    parts = [index.take_dirty(10) for _ in range(4)]
    assert [len(part) for part in parts] == [10, 10, 5, 0]
    assert len(set().union(*parts)) == 25


def test_who_is_urgent_comes_first_and_only_if_there_is_something_to_look_at() -> None:
    index = RegistryIndex()
    for number in range(30):
        index.observe(Entry(spec_key(f"a{number}"), encode(Spec(kind="A", incarnation="l", status="running")), number + 1))
    index.hurry([f"a{number}" for number in range(15, 30)] + ["unknown"])
    first, second = index.take_dirty(10), index.take_dirty(10)
    urgent = {f"a{number}" for number in range(15, 30)}
    assert first < urgent
    assert len(second & urgent) == 5
    assert first | second | index.take_dirty(10) == {f"a{number}" for number in range(30)}
    index.hurry(["a1"])
    assert index.take_dirty(10) == set()
