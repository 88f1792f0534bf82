"""Every OpenTelemetry name that the mesh uses, in one place.

The GenAI and messaging conventions are in development and still rename things; code elsewhere says `semconv.AGENT_NAME`, so
that following them is a change to this file. The package opentelemetry-semantic-conventions marks all of its GenAI names as
deprecated (they have moved to a repository of their own) and lacks the newer ones, so it is not imported; a test compares the
names that both have. Sources: semantic-conventions-genai (spans of agents, models and tools) and the
messaging conventions, v1.44, with the custom system `nats`.
"""

from __future__ import annotations

SCOPE = "agentmesh"
"""Instrumentation scope of all tracers and meters."""

# --- span names ---------------------------------------------------------------------------------------------------


def invoke_agent(agent: str) -> str:
    """A turn in its agent's process (INTERNAL), or a call to an agent elsewhere (CLIENT)."""
    return f"invoke_agent {agent}"


def chat(model: str) -> str:
    """A call to a model (CLIENT)."""
    return f"chat {model}"


def execute_tool(tool: str) -> str:
    """A tool run for a model (INTERNAL)."""
    return f"execute_tool {tool}"


# --- GenAI --------------------------------------------------------------------------------------------------------
OPERATION = "gen_ai.operation.name"
OPERATION_INVOKE_AGENT = "invoke_agent"
OPERATION_CHAT = "chat"
OPERATION_EXECUTE_TOOL = "execute_tool"
AGENT_NAME = "gen_ai.agent.name"
"""The agent whose turn it is; on a CLIENT span the one that is called."""
CONVERSATION_ID = "gen_ai.conversation.id"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
"""All input tokens, the cached ones included."""
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS = "gen_ai.usage.cache_write.input_tokens"
INPUT_TOKENS_COUNTER = "gen_ai.client.inference.usage.input_tokens"
"""Counters, by model: each token that models were paid for, in `{token}`. All input tokens, the cached ones included."""
OUTPUT_TOKENS_COUNTER = "gen_ai.client.inference.usage.output_tokens"
CACHE_READ_TOKENS_COUNTER = "gen_ai.client.inference.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS_COUNTER = "gen_ai.client.inference.usage.cache_write.input_tokens"
COST_COUNTER = "mesh.turn.cost"
"""What turns have cost, in `{USD}`: the conventions have no word for money."""
TOOL_CALLS_COUNTER = "mesh.turn.tool_calls"
"""Tool runs of turns, in `{call}`."""
DROPPED_COUNTER = "mesh.node.dropped"
"""Live events and facts that a node could not send, in `{message}`, by `mesh.node`."""
COST = "mesh.turn.cost_usd"
"""On the span of a turn: what it has cost, in US dollars, without those that it asked."""
TOOL_NAME = "gen_ai.tool.name"
TOOL_CALL_ID = "gen_ai.tool.call.id"
TRANSFER_TARGET = "gen_ai.transfer.target.name"
"""On the run of a tool that asks another agent: which one."""
CALLER_NAME = "gen_ai.caller.name"
ERROR_TYPE = "error.type"
"""The mesh's error code."""

# --- messaging ----------------------------------------------------------------------------------------------------
MESSAGING_SYSTEM = "messaging.system"
SYSTEM_NATS = "nats"
MESSAGING_OPERATION = "messaging.operation.name"
OPERATION_PROCESS = "process"

# --- the mesh's own -----------------------------------------------------------------------------------------------
KIND = "mesh.agent.kind"
"""The agent's class. Metrics bear this and not the name: there may be a hundred thousand names."""
REF = "mesh.ref"
TURN = "mesh.turn"
NODE = "mesh.node"
LANE = "mesh.lane"
"""On spans of messages: the lane of mail that it lies in."""
TO = "mesh.to"
"""On a `send` span: the agent that it is for."""
WAIT = "mesh.wait_s"
"""On a `process` span: seconds from when the server had stored the message until it was begun for the first time."""
ATTEMPT = "mesh.attempt"
"""On the span of an attempt: the how manieth of its input, from 1."""
ATTEMPT_END = "mesh.attempt.end"
"""How it ended: `ok`, `error`, `lost`, `fenced` or `moved`."""
GENERATION = "mesh.generation"
EPOCH = "mesh.epoch"

# --- resources ----------------------------------------------------------------------------------------------------
SERVICE_NAME = "service.name"
SERVICE_NAMESPACE = "service.namespace"
SERVICE_INSTANCE_ID = "service.instance.id"
SERVICE_VERSION = "service.version"


def service_name(role: str) -> str:
    """`service.name` of a process that plays `role`: `node`, `supervisor`, `client`."""
    return f"mesh-{role}"
