"""Modules that were renamed go on being importable by their former names, and are the same objects."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import agentmesh_node

SAME = {
    "agentmesh.decisions": "agentmesh.callback_results",
    "agentmesh.edge.ambient": "agentmesh.edge.clock",
    "agentmesh.edge.client": "agentmesh.edge.nats_client",
    "agentmesh.edge.delivery": "agentmesh.edge.subscription",
    "agentmesh.edge.soon": "agentmesh.edge.publish",
    "agentmesh.edge.upkeep": "agentmesh.edge.manage",
    "agentmesh.hands": "agentmesh.callback_context",
    "agentmesh_client.cli.asking": "agentmesh_client.cli.asks",
    "agentmesh_client.cli.operating": "agentmesh_client.cli.admin",
    "agentmesh_client.ends": "agentmesh_client.late_prompts",
    "agentmesh_client.facts": "agentmesh_client.doctor.facts",
    "agentmesh_client.operating": "agentmesh_client.admin",
    "agentmesh_client.patience": "agentmesh_client.retry",
    "agentmesh_client.prompting": "agentmesh_client.asks",
    "agentmesh_client.prompts": "agentmesh_client.validation",
    "agentmesh_client.sending": "agentmesh_client.mailer",
    "agentmesh_client.specs": "agentmesh_client.spec_cache",
    "agentmesh_client.starting": "agentmesh_client.lifecycle",
    "agentmesh_client.verdicts": "agentmesh_client.doctor.diagnosis",
    "agentmesh_client.waiting": "agentmesh_client.pending_asks",
    "agentmesh_node.carrier": "agentmesh_node.liveness_thread",
    "agentmesh_node.commands": "agentmesh_node.cli",
    "agentmesh_node.embedded": "agentmesh_node.process.nats_server",
    "agentmesh_node.events": "agentmesh_node.telemetry.events",
    "agentmesh_node.load": "agentmesh_node.process.agent_loader",
    "agentmesh_node.logs": "agentmesh_node.telemetry.logs",
    "agentmesh_node.loop": "agentmesh_node.tools.loop",
    "agentmesh_node.loop_steps": "agentmesh_node.tools.loop_steps",
    "agentmesh_node.service": "agentmesh_node.process.main",
    "agentmesh_node.supervisor_settings": "agentmesh_node.settings",
    "agentmesh_node.tools.threads": "agentmesh_node.user_code.threads",
    "agentmesh_node.tracing": "agentmesh_node.telemetry.tracing",
}
NAMES = [
    ("agentmesh.edge.jetstream", "ApiError", "agentmesh.edge.failures", "ApiError"),
    ("agentmesh.edge.jetstream", "EXPECTED_SEQ", "agentmesh.edge.publish", "EXPECTED_SEQ"),
    ("agentmesh.edge.jetstream", "Page", "agentmesh.edge.read", "Page"),
    ("agentmesh.edge.jetstream", "Stored", "agentmesh.edge.publish", "Stored"),
    ("agentmesh.edge.jetstream", "StoredMessage", "agentmesh.edge.read", "StoredMessage"),
    ("agentmesh.edge.jetstream", "Uncertain", "agentmesh.edge.failures", "Uncertain"),
    ("agentmesh.edge.jetstream", "WrongLastSequence", "agentmesh.edge.failures", "WrongLastSequence"),
    ("agentmesh.edge.jetstream", "api", "agentmesh.edge.api", "call_api"),
    ("agentmesh.edge.jetstream", "get_last", "agentmesh.edge.read", "get_last"),
    ("agentmesh.edge.jetstream", "get_last_direct", "agentmesh.edge.read", "get_last_direct"),
    ("agentmesh.edge.jetstream", "get_last_many", "agentmesh.edge.read", "get_last_many"),
    ("agentmesh.edge.jetstream", "get_next", "agentmesh.edge.read", "get_next"),
    ("agentmesh.edge.jetstream", "purge", "agentmesh.edge.manage", "purge"),
    ("agentmesh.edge.jetstream", "read", "agentmesh.edge.read", "read"),
    ("agentmesh.edge.jetstream", "read_all", "agentmesh.edge.read", "read_all"),
    ("agentmesh.edge.jetstream", "schedule", "agentmesh.edge.publish", "schedule"),
    ("agentmesh.edge.jetstream", "store", "agentmesh.edge.publish", "store"),
    ("agentmesh.edge.jetstream", "stream_state", "agentmesh.edge.manage", "stream_state"),
    ("agentmesh.hands", "Reply", "agentmesh.callback_context", "DeferredReply"),
    ("agentmesh_node.carrier", "Carrier", "agentmesh_node.liveness_thread", "LivenessLoop"),
    ("agentmesh_node.events", "Handler", "agentmesh_node.telemetry.events", "FactHandler"),
    ("agentmesh_node.host", "Node", "agentmesh_node.host.node", "Node"),
    ("agentmesh_node.host", "NodeSettings", "agentmesh_node.settings", "NodeSettings"),
    ("agentmesh_node.loop", "Meter", "agentmesh_node.tools.loop", "CallGuard"),
    ("agentmesh_node.loop_steps", "Reply", "agentmesh_node.tools.loop_steps", "ModelAnswer"),
    ("agentmesh_node.loop_steps", "Taken", "agentmesh_node.tools.loop_steps", "ReplayedSteps"),
    ("agentmesh_node.services", "NodeSettings", "agentmesh_node.settings", "NodeSettings"),
    ("agentmesh_node.supervisor", "Supervisor", "agentmesh_node.supervisor.supervisor", "Supervisor"),
    ("agentmesh_node.supervisor", "SupervisorSettings", "agentmesh_node.settings", "SupervisorSettings"),
    ("agentmesh_node.telemetry", "Telemetry", "agentmesh_node.telemetry.otel", "Telemetry"),
    ("agentmesh_node.telemetry", "setup", "agentmesh_node.telemetry.otel", "setup"),
]


@pytest.mark.parametrize("former", SAME)
def test_a_former_name_is_the_same_module(former: str) -> None:
    assert import_module(former) is import_module(SAME[former])
    package, _, name = former.rpartition(".")
    assert getattr(import_module(package), name) is import_module(SAME[former])  # as `from package import name` takes it


@pytest.mark.parametrize(("former", "name", "present", "named"), NAMES)
def test_what_a_former_module_had_is_the_same_object(former: str, name: str, present: str, named: str) -> None:
    assert getattr(import_module(former), name) is getattr(import_module(present), named)


@pytest.mark.processes
def test_a_former_name_is_the_first_import_of_a_process() -> None:
    code = "from agentmesh_node.loop_steps import Reply; from agentmesh.edge.jetstream import store; print(Reply, store)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert "ModelAnswer" in found.stdout


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"agentmesh_node\.nothing"):
        import_module("agentmesh_node.nothing")
    with pytest.raises(AttributeError, match="nothing"):
        import_module("agentmesh_node.host").nothing  # noqa: B018 - what is looked up is the test


def test_a_former_name_costs_no_file() -> None:
    (top,) = agentmesh_node.__path__
    assert len(list(Path(top).glob("*.py"))) <= 10
