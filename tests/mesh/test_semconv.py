"""The names for OpenTelemetry are those of its own package, where that has them; docs/observability.md shows those of spans.
`python tests/mesh/test_semconv.py` brings the page up to date."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from agentmesh import semconv

PACKAGE = "opentelemetry.semconv"
GENAI, MESSAGING = f"{PACKAGE}._incubating.attributes.gen_ai_attributes", f"{PACKAGE}._incubating.attributes.messaging_attributes"
SERVICE, ERROR = f"{PACKAGE}.attributes.service_attributes", f"{PACKAGE}.attributes.error_attributes"
THEIRS = {
    "OPERATION": (GENAI, "GEN_AI_OPERATION_NAME"),
    "AGENT_NAME": (GENAI, "GEN_AI_AGENT_NAME"),
    "CONVERSATION_ID": (GENAI, "GEN_AI_CONVERSATION_ID"),
    "PROVIDER": (GENAI, "GEN_AI_PROVIDER_NAME"),
    "REQUEST_MODEL": (GENAI, "GEN_AI_REQUEST_MODEL"),
    "RESPONSE_MODEL": (GENAI, "GEN_AI_RESPONSE_MODEL"),
    "INPUT_TOKENS": (GENAI, "GEN_AI_USAGE_INPUT_TOKENS"),
    "OUTPUT_TOKENS": (GENAI, "GEN_AI_USAGE_OUTPUT_TOKENS"),
    "CACHE_READ_TOKENS": (GENAI, "GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS"),
    "TOOL_NAME": (GENAI, "GEN_AI_TOOL_NAME"),
    "TOOL_CALL_ID": (GENAI, "GEN_AI_TOOL_CALL_ID"),
    "MESSAGING_SYSTEM": (MESSAGING, "MESSAGING_SYSTEM"),
    "MESSAGING_OPERATION": (MESSAGING, "MESSAGING_OPERATION_NAME"),
    "MESSAGING_OPERATION_TYPE": (MESSAGING, "MESSAGING_OPERATION_TYPE"),
    "DESTINATION": (MESSAGING, "MESSAGING_DESTINATION_NAME"),
    "DESTINATION_TEMPLATE": (MESSAGING, "MESSAGING_DESTINATION_TEMPLATE"),
    "MESSAGE_ID": (MESSAGING, "MESSAGING_MESSAGE_ID"),
    "MESSAGE_CONVERSATION_ID": (MESSAGING, "MESSAGING_MESSAGE_CONVERSATION_ID"),
    "ERROR_TYPE": (ERROR, "ERROR_TYPE"),
    "SERVICE_NAME": (SERVICE, "SERVICE_NAME"),
    "SERVICE_NAMESPACE": (SERVICE, "SERVICE_NAMESPACE"),
    "SERVICE_INSTANCE_ID": (SERVICE, "SERVICE_INSTANCE_ID"),
    "SERVICE_VERSION": (SERVICE, "SERVICE_VERSION"),
}


@pytest.mark.parametrize("name", THEIRS)
def test_a_name_is_the_packages(name: str) -> None:
    module, theirs = THEIRS[name]
    assert getattr(semconv, name) == getattr(import_module(module), theirs)


PAGE = Path(__file__).parents[2] / "docs" / "observability.md"
_TABLES = re.compile(r"(?<=<!-- spans: python tests/mesh/test_semconv.py -->\n).*?(?=<!-- end -->)", re.DOTALL)


def tables() -> str:
    """The tables of spans and of their attributes, as the page shows them."""
    spans = [f"| `{row.name}` | {row.kind} | {row.parent} | {row.meaning} |" for row in semconv.SPANS]
    every = {row.operation for row in semconv.SPANS}
    attributes = [
        f"| `{row.name}` | {'all' if set(row.on) == every else ', '.join(row.on)} | {row.convention} | {row.meaning} |"
        for row in semconv.ATTRIBUTES
    ]
    head = "| span | kind | parent | what it is |\n|---|---|---|---|"
    of_attributes = "| attribute | on | convention | what it says |\n|---|---|---|---|"
    return "\n".join([head, *spans, "", of_attributes, *attributes]) + "\n"


def test_the_page_shows_all_spans_and_their_attributes() -> None:
    found = _TABLES.search(PAGE.read_text())
    assert found, "docs/observability.md has no place for the tables of spans"
    assert found[0] == tables(), "run: python tests/mesh/test_semconv.py"


def test_the_conventions_of_attributes_are_known_by_their_names() -> None:
    heads = {"gen_ai.": "GenAI", "messaging.": "messaging", "mesh.": "mesh"}
    for row in semconv.ATTRIBUTES:
        assert row.convention == next((found for head, found in heads.items() if row.name.startswith(head)), "general")
    assert len({row.name for row in semconv.ATTRIBUTES}) == len(semconv.ATTRIBUTES)


if __name__ == "__main__":
    PAGE.write_text(_TABLES.sub(lambda _: tables(), PAGE.read_text()))
