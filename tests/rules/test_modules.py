"""Each module has a test file of its own, in the mirrored place: a change to a module shows which tests to run first.

`node/agentmesh_node/owner/idle.py` is tested by `tests/node/owner/test_idle.py`, which imports it. `OTHERWISE` lists the modules
that have none, each with the test file that tests it instead, or why it needs no test. The list only shrinks.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"mesh": "agentmesh", "node": "agentmesh_node", "client": "agentmesh_client"}

IMPORTED_BY: dict[str, str] = {
    "agentmesh.agent": "mesh/turn/test_hooks.py",
    "agentmesh.callback_context": "node/turns/test_callbacks.py",
    "agentmesh.callback_results": "node/owner/test_loop.py",
    "agentmesh.edge.api": "mesh/edge/test_manage.py",
    "agentmesh.edge.batches": "mesh/edge/test_registry.py",
    "agentmesh.edge.failures": "mesh/edge/test_publish.py",
    "agentmesh.edge.frames": "mesh/edge/test_frames_in.py",
    "agentmesh.edge.nats_client": "mesh/edge/test_frames_in.py",
    "agentmesh.edge.transport": "mesh/edge/test_connection.py",
    "agentmesh.errors": "mesh/test_wire.py",
    "agentmesh.ownership": "rules/test_ownership.py",
    "agentmesh.ledger_entries": "mesh/test_ledger.py",
    "agentmesh.records": "mesh/test_ledger.py",
    "agentmesh.steps": "node/tools/test_loop_steps.py",
    "agentmesh.subjects": "mesh/edge/test_streams.py",
    "agentmesh.testing": "node/backends/test_conformance.py",
    "agentmesh.tools.declared": "node/tools/test_toolbox.py",
    "agentmesh.turn.dispatch": "mesh/turn/test_notify.py",
    "agentmesh.turn.lifecycle": "mesh/turn/test_stop.py",
    "agentmesh.turn.step_values": "mesh/turn/test_model.py",
    "agentmesh.turn.values": "mesh/turn/test_ask.py",
    "agentmesh.turn.wait_cycles": "mesh/turn/test_circles.py",
    "agentmesh_client": "client/test_asking.py",
    "agentmesh_client.cli.common": "client/test_cli.py",
    "agentmesh_client.cli.exits": "client/test_cli.py",
    "agentmesh_client.cli.main": "client/test_cli.py",
    "agentmesh_client.cli.output": "client/test_cli.py",
    "agentmesh_client.cli.streaming": "client/test_streaming.py",
    "agentmesh_client.doctor.diagnosis": "client/test_doctor.py",
    "agentmesh_client.doctor.facts": "client/test_doctor.py",
    "agentmesh_client.pending_asks": "client/test_asking.py",
    "agentmesh_node": "node/test_store_loss.py",
    "agentmesh_node.backends.anthropic.clients": "node/backends/test_anthropic.py",
    "agentmesh_node.backends.anthropic.failures": "node/backends/test_anthropic_failures.py",
    "agentmesh_node.backends.anthropic.options": "node/backends/test_backend_docs.py",
    "agentmesh_node.backends.claude.mirror": "node/backends/test_claude_mirror.py",
    "agentmesh_node.backends.claude.options": "node/backends/test_claude_child.py",
    "agentmesh_node.backends.claude.store": "node/backends/test_claude_store.py",
    "agentmesh_node.backends.claude.transcript": "node/backends/test_claude_mirror.py",
    "agentmesh_node.backends.codex.backend": "node/backends/test_codex_turns.py",
    "agentmesh_node.backends.codex.homes": "node/backends/test_codex_parts.py",
    "agentmesh_node.backends.codex.notifications": "node/backends/test_codex_parts.py",
    "agentmesh_node.backends.codex.process": "node/backends/test_codex_parts.py",
    "agentmesh_node.backends.codex.rollout": "node/backends/test_codex_parts.py",
    "agentmesh_node.backends.codex.settings": "node/backends/test_codex_parts.py",
    "agentmesh_node.backends.codex.steps": "node/backends/test_codex_parts.py",
    "agentmesh_node.host.placed_agent": "node/host/test_catalog.py",
    "agentmesh_node.liveness_thread": "node/supervisor/test_leader_lease.py",
    "agentmesh_node.process.signals": "node/process/test_options.py",
    "agentmesh_node.services": "node/owner/test_idle.py",
    "agentmesh_node.settings": "node/process/test_options.py",
    "agentmesh_node.supervisor.late_mail": "rules/test_sentences.py",
    "agentmesh_node.telemetry.tracing": "node/turns/test_callbacks.py",
    "agentmesh_node.tools.calls": "node/tools/test_toolbox.py",
}
"""Modules that another test file imports and tests."""

THROUGH: dict[str, str] = {
    "agentmesh.edge.diagnosis": "node/host/test_stream_health.py",
    "agentmesh.names": "node/owner/test_control_requests.py",
    "agentmesh.renamed": "rules/test_former_names.py",
    "agentmesh.tools.signature": "node/tools/test_toolbox.py",
    "agentmesh.turn.control": "mesh/turn/test_halt.py",
    "agentmesh.turn.crash": "mesh/turn/test_errors.py",
    "agentmesh.turn.draft": "mesh/turn/test_model.py",
    "agentmesh.turn.late_mail": "node/host/test_late_mail_sweep.py",
    "agentmesh.turn.machine": "mesh/turn/test_model.py",
    "agentmesh.turn.outcome": "mesh/turn/test_ask.py",
    "agentmesh.turn.poison": "mesh/turn/test_poison.py",
    "agentmesh_client.admin": "live/test_operating.py",
    "agentmesh_client.asks": "client/test_asking.py",
    "agentmesh_client.cli.admin": "client/test_cli.py",
    "agentmesh_client.cli.agents": "client/test_cli.py",
    "agentmesh_client.cli.asks": "client/test_cli.py",
    "agentmesh_client.cli.dead": "client/test_cli.py",
    "agentmesh_client.cli.doctor": "client/test_doctor.py",
    "agentmesh_client.client": "client/test_asking.py",
    "agentmesh_client.dead": "client/test_cli.py",
    "agentmesh_client.directory": "client/test_cli.py",
    "agentmesh_client.late_prompts": "client/test_asking.py",
    "agentmesh_client.polling": "client/test_polling.py",
    "agentmesh_client.results": "client/test_polling.py",
    "agentmesh_client.retry": "client/test_asking.py",
    "agentmesh_client.spec_cache": "client/test_asking.py",
    "agentmesh_client.validation": "client/test_asking.py",
    "agentmesh_node.backends.anthropic.backend": "node/backends/test_anthropic.py",
    "agentmesh_node.backends.anthropic.messages": "node/backends/test_anthropic.py",
    "agentmesh_node.backends.anthropic.model": "node/backends/test_anthropic.py",
    "agentmesh_node.backends.claude.attempts": "node/backends/test_claude_turns.py",
    "agentmesh_node.backends.claude.backend": "node/backends/test_claude_turns.py",
    "agentmesh_node.backends.claude.content": "node/backends/test_claude_turns.py",
    "agentmesh_node.backends.claude.failures": "node/backends/test_claude_turns.py",
    "agentmesh_node.backends.claude.files": "node/backends/test_claude_child.py",
    "agentmesh_node.backends.claude.launch": "node/backends/test_claude_child.py",
    "agentmesh_node.backends.claude.own_tools": "node/backends/test_claude_turns.py",
    "agentmesh_node.backends.claude.process": "node/backends/test_claude_child.py",
    "agentmesh_node.backends.codex.own_tools": "node/backends/test_codex_turns.py",
    "agentmesh_node.backends.codex.run": "node/backends/test_codex_turns.py",
    "agentmesh_node.owner.dead_letters": "node/owner/test_control_requests.py",
    "agentmesh_node.telemetry.otel": "node/telemetry/test_otel.py",
    "agentmesh_node.telemetry.prometheus": "node/telemetry/test_instruments.py",
    "agentmesh_node.tools.functions": "node/tools/test_toolbox.py",
    "agentmesh_node.tools.toolbox": "node/tools/test_toolbox.py",
    "agentmesh_node.turns.live_events": "node/turns/test_turn_run.py",
    "agentmesh_node.user_code.block_detector": "node/turns/test_callbacks.py",
    "agentmesh_node.user_code.threads": "node/user_code/test_callback_threads.py",
}
"""Modules that a test file tests through what it imports."""

WHOLE_NODES: dict[str, str] = {
    "agentmesh_node.cli": "live/test_commands.py",
    "agentmesh_node.host.heartbeat": "live/test_supervision.py",
    "agentmesh_node.host.node": "live/test_hosting.py",
    "agentmesh_node.owner.journal_writer": "sim/test_crash_points.py",
    "agentmesh_node.owner.owner": "sim/test_crash_points.py",
    "agentmesh_node.process.main": "live/test_hosting.py",
}
"""Modules that no small test holds: only whole nodes do, for real or in the simulator. The file that says most is named."""

NEEDS_NONE: dict[str, str] = {
    "agentmesh.edge.clock": "declares the ports of clock and randomness",
    "agentmesh_node.__main__": "calls process/main.py",
}
"""Modules that need no test, and why."""

OTHERWISE = IMPORTED_BY | THROUGH | WHOLE_NODES | NEEDS_NONE
MOST = 116
"""How long the list may be. Only ever make it smaller."""


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the product, and the test file that is its own."""
    for part, package in PACKAGES.items():
        top = ROOT / part / package
        for path in sorted(top.rglob("*.py")):
            inner = path.relative_to(top).with_suffix("")
            name = ".".join((package, *inner.parts)).removesuffix(".__init__")
            if path.name == "__init__.py" and not any(isinstance(node, DEFINITIONS) for node in ast.parse(path.read_text()).body):
                continue  # nothing but names of others
            yield name, ROOT / "tests" / part / inner.parent / f"test_{inner.name}.py"


DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@functools.cache
def imported(path: Path) -> set[str]:
    """All modules that a file imports: of `from a import b` both `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def has_its_own(name: str, own: Path) -> bool:
    return own.exists() and name in imported(own)


def test_each_module_has_a_test_file_of_its_own_or_stands_in_the_list() -> None:
    missing = [f"{name}: {own.relative_to(ROOT)}" for name, own in modules() if not has_its_own(name, own)]
    assert [line for line in missing if line.partition(":")[0] not in OTHERWISE] == []


def test_the_list_only_shrinks() -> None:
    own = dict(modules())
    assert len(OTHERWISE) <= MOST
    assert sorted(OTHERWISE.keys() - own.keys()) == [], "no such module"
    assert [name for name in OTHERWISE if has_its_own(name, own[name])] == [], "it has a test file of its own by now"


def test_what_is_said_to_be_imported_is() -> None:
    assert [name for name, where in IMPORTED_BY.items() if name not in imported(ROOT / "tests" / where)] == []


def test_the_files_that_test_a_module_through_another_exist() -> None:
    assert [where for where in (THROUGH | WHOLE_NODES).values() if not (ROOT / "tests" / where).is_file()] == []
    assert all(NEEDS_NONE.values())


def test_imports_are_found_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "test_some.py"
    path.write_text("import a.b\nfrom c import d\ndef f():\n    from e.f import g as h\n")
    assert imported(path) == {"a.b", "c", "c.d", "e.f", "e.f.g"}
