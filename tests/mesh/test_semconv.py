"""The names for OpenTelemetry are those of its own package, where that has them."""

from __future__ import annotations

from importlib import import_module

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
