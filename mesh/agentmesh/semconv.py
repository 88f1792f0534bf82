"""Every OpenTelemetry name that the mesh uses, in one place.

The GenAI and messaging conventions are in development and still rename things; code elsewhere says `semconv.AGENT_NAME`, so
that following them is a change to this file. The package opentelemetry-semantic-conventions marks all of its GenAI names as
deprecated (they have moved to a repository of their own) and lacks the newer ones, so it is not imported; a test compares the
names that both have. Sources: semantic-conventions-genai (spans of agents, models and tools) and the
messaging conventions, v1.44, with the custom system `nats`.

`SPANS` and `ATTRIBUTES` list all that spans of the mesh's own bear; docs/observability.md#spans shows them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

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


def send(lane: str) -> str:
    """Mail to another agent, by its lane (PRODUCER). Of the subject only the template is shown: names would be without end."""
    return f"{OPERATION_SEND} {destination_template(lane)}"


def process(lane: str) -> str:
    """An agent deals with a message of that lane (CONSUMER)."""
    return f"{OPERATION_PROCESS} {destination_template(lane)}"


def destination_template(lane: str) -> str:
    """The subjects of a lane, in which `mesh` stands for the mesh's root."""
    return f"mesh.{lane}.{{agent}}"


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
TURN_DURATION = "gen_ai.invoke_agent.duration"
"""Histogram, in `s`: each turn from its beginning to the record that ends it, takeovers and tries included."""
MODEL_CALL_DURATION = "gen_ai.client.inference.duration"
"""Histogram, in `s`: each call to a model that the mesh makes itself."""
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
QUEUE_WAIT = "mesh.turn.queue_wait"
"""Histogram, in `s`: how long a message waited until its turn began, of those that waited."""
MAILBOX_DEPTH = "mesh.mailbox.depth"
AGENTS_GAUGE = "mesh.node.agents"
ACTIVATIONS_COUNTER = "mesh.agent.activations"
TAKEOVER_DURATION = "mesh.agent.takeover.duration"
"""Histogram, in `s`: from an agent's placement to when its new owner goes on, of agents that another process owned before."""
JOURNAL_BYTES_COUNTER = "mesh.journal.written"
LOOP_LAG = "mesh.loop.lag"
"""Histogram, in `s`: how much later than asked the loop came round, measured twice a second."""
STORE_ERRORS_COUNTER = "mesh.store.errors"
"""What the server refused or left unanswered, of requests to its streams."""
ASKS_COUNTER = "mesh.gateway.asks"
"""Plain NATS requests that this process took for agents."""
WAITING_GAUGE = "mesh.supervisor.waiting"
"""Agents that the leader has no node for; others than the leader say 0."""
LEADING_GAUGE = "mesh.supervisor.leading"
LEADER_CHANGES_COUNTER = "mesh.supervisor.leader_changes"
"""How often this supervisor has become the leader: added up over all of them, how often the leader has changed."""
DECISIONS_COUNTER = "mesh.supervisor.decisions"
COST = "mesh.turn.cost_usd"
"""On the span of a turn: what it has cost, in US dollars, without those that it asked."""
TOOL_NAME = "gen_ai.tool.name"
TOOL_CALL_ID = "gen_ai.tool.call.id"
TRANSFER_TARGET = "gen_ai.transfer.target.name"
"""On the run of a tool that asks another agent: which one."""
CALLER_NAME = "gen_ai.caller.name"
USER = "enduser.id"
"""The user on whose behalf it is, where the server has told one (docs/security.md#on-whose-behalf)."""
ERROR_TYPE = "error.type"
"""The mesh's error code."""

# --- messaging ----------------------------------------------------------------------------------------------------
MESSAGING_SYSTEM = "messaging.system"
SYSTEM_NATS = "nats"
MESSAGING_OPERATION = "messaging.operation.name"
OPERATION_PROCESS = "process"
OPERATION_SEND = "send"
MESSAGING_OPERATION_TYPE = "messaging.operation.type"
DESTINATION = "messaging.destination.name"
DESTINATION_TEMPLATE = "messaging.destination.template"
MESSAGE_ID = "messaging.message.id"
"""The message's sequence in its stream: its `Nats-Msg-Id` must not be guessed, and is not told."""
MESSAGE_CONVERSATION_ID = "messaging.message.conversation_id"

# --- the mesh's own -----------------------------------------------------------------------------------------------
KIND = "mesh.agent.kind"
"""The agent's class. Metrics bear this and not the name: there may be a hundred thousand names."""
AGENT_STATE = "mesh.agent.state"
"""On the gauge of a node's agents: `placed`, `awake` or `running`; who runs is awake, and who is awake is placed."""
DECISION = "mesh.decision"
"""What a supervisor has decided: `placed`, `moved`, `removed`, `waiting` and others."""
REF = "mesh.ref"
TURN = "mesh.turn"
NODE = "mesh.node"
ACCOUNT = "mesh.account"
"""The NATS account of that user."""
CHAIN = "mesh.chain"
"""All parties on whose behalf it is, the oldest first, as `agentmesh.identity.told` has them."""
LANE = "mesh.lane"
"""On spans of messages: the lane of mail that it lies in."""
TO = "mesh.to"
"""On a `send` span: the agent that it is for."""
WAIT = "mesh.wait_s"
"""On a `process` span: seconds from when the server had stored the message until the attempt, or callback, that dealt with it."""
ATTEMPT = "mesh.attempt"
"""On the span of an attempt: its number among those of its input, as far as the journal has charged them, from 1."""
ATTEMPT_END = "mesh.attempt.end"
"""How it ended: `ok`, `error`, `lost`, `fenced` or `moved`."""
GENERATION = "mesh.generation"
EPOCH = "mesh.epoch"
BOOT = "mesh.boot"
"""The random id of the process that ran an attempt."""
TAKEOVERS = "mesh.takeovers"
"""On the span of an attempt: the nodes that had died with its input before."""
ORIGIN = "mesh.origin"
"""On a `send` span: the origin of the mail, which its sender never uses again."""
TIMER = "mesh.timer"
"""On the `process` span of a timer's tick: the timer's id."""

# --- resources ----------------------------------------------------------------------------------------------------
SERVICE_NAME = "service.name"
SERVICE_NAMESPACE = "service.namespace"
SERVICE_INSTANCE_ID = "service.instance.id"
SERVICE_VERSION = "service.version"


def service_name(role: str) -> str:
    """`service.name` of a process that plays `role`: `node`, `supervisor`, `client`."""
    return f"mesh-{role}"


# --- all that spans of the mesh's own bear --------------------------------------------------------------------------
type Operation = Literal["send", "process", "invoke_agent", "chat", "execute_tool"]


class SpanRow(NamedTuple):
    """One kind of span."""

    operation: Operation
    name: str
    kind: str
    parent: str
    meaning: str


class AttributeRow(NamedTuple):
    """One attribute."""

    name: str
    on: tuple[Operation, ...]
    convention: Literal["GenAI", "messaging", "general", "mesh"]
    meaning: str


SPANS = (
    SpanRow("send", "send mesh.<lane>.{agent}", "PRODUCER", "the attempt, tool run or handling that sent it",
            "mail to another agent, in the moment in which its record was committed"),
    SpanRow("process", "process mesh.<lane>.{agent}", "CONSUMER", "the message's own context: a `send` span, or the caller's",
            "an agent deals with a message: from when the server had stored it to the record that consumes it"),
    SpanRow("invoke_agent", "invoke_agent <agent>", "INTERNAL", "the `process` span; of a chained prompt what made it",
            "one attempt of a turn"),
    SpanRow("chat", "chat <model>", "CLIENT", "the attempt", "a call to a model"),
    SpanRow("execute_tool", "execute_tool <tool>", "INTERNAL", "the attempt", "a run of a tool"),
)  # fmt: skip
"""The spans that the mesh tells, from the outermost inwards. Those of the SDK and of users' own code come between them."""

_MESSAGES: tuple[Operation, ...] = ("send", "process")
_INSIDE: tuple[Operation, ...] = ("chat", "execute_tool")
_TURNS: tuple[Operation, ...] = ("invoke_agent", *_INSIDE)
_CALLS: tuple[Operation, ...] = ("invoke_agent", "chat")
_ALL: tuple[Operation, ...] = (*_MESSAGES, *_TURNS)

ATTRIBUTES = (
    AttributeRow(OPERATION, _TURNS, "GenAI", "`invoke_agent`, `chat` or `execute_tool`"),
    AttributeRow(AGENT_NAME, _ALL, "GenAI", "the agent that the span is a part of"),
    AttributeRow(CONVERSATION_ID, _ALL, "GenAI", "the agent's life: the same for all turns from its start to its end"),
    AttributeRow(CALLER_NAME, ("process", "invoke_agent"), "GenAI", "the agent that sent the message; absent if none did"),
    AttributeRow(USER, ("process", "invoke_agent"), "general", "the user on whose behalf it is; absent if none is known"),
    AttributeRow(PROVIDER, ("chat",), "GenAI", "whose model it is"),
    AttributeRow(REQUEST_MODEL, ("chat",), "GenAI", "the model that was asked for"),
    AttributeRow(RESPONSE_MODEL, _CALLS, "GenAI", "the model that answered; of several the newest"),
    AttributeRow(INPUT_TOKENS, _CALLS, "GenAI", "input tokens, the cached ones included"),
    AttributeRow(OUTPUT_TOKENS, _CALLS, "GenAI", "output tokens"),
    AttributeRow(CACHE_READ_TOKENS, _CALLS, "GenAI", "input tokens that were read from a cache"),
    AttributeRow(CACHE_WRITE_TOKENS, _CALLS, "GenAI", "input tokens that were written to a cache"),
    AttributeRow(TOOL_NAME, ("execute_tool",), "GenAI", "the tool"),
    AttributeRow(TOOL_CALL_ID, ("execute_tool",), "GenAI", "the model's id of the call"),
    AttributeRow(TRANSFER_TARGET, ("execute_tool",), "GenAI", "the agent that the tool asks, if it asks one"),
    AttributeRow(ERROR_TYPE, _ALL, "general", "the code of the error that it ended with"),
    AttributeRow(MESSAGING_SYSTEM, _MESSAGES, "messaging", "`nats`"),
    AttributeRow(MESSAGING_OPERATION, _MESSAGES, "messaging", "`send` or `process`"),
    AttributeRow(MESSAGING_OPERATION_TYPE, _MESSAGES, "messaging", "the same"),
    AttributeRow(DESTINATION, _MESSAGES, "messaging", "the subject"),
    AttributeRow(DESTINATION_TEMPLATE, _MESSAGES, "messaging", "the subject without the agent's name"),
    AttributeRow(MESSAGE_ID, ("process",), "messaging", "the message's sequence in its stream"),
    AttributeRow(MESSAGE_CONVERSATION_ID, ("process",), "messaging", "as `gen_ai.conversation.id`"),
    AttributeRow(KIND, _ALL, "mesh", "the agent's kind"),
    AttributeRow(NODE, _ALL, "mesh", "the node that committed the record; of an attempt the one that ran it"),
    AttributeRow(ACCOUNT, ("process", "invoke_agent"), "mesh", "the NATS account of that user"),
    AttributeRow(CHAIN, ("process", "invoke_agent"), "mesh", "that user, and the agents that have handed the request on"),
    AttributeRow(LANE, _MESSAGES, "mesh", "the lane of mail"),
    AttributeRow(TO, ("send",), "mesh", "the agent that it is for"),
    AttributeRow(ORIGIN, ("send",), "mesh", "the mail's origin"),
    AttributeRow(WAIT, ("process",), "mesh", "seconds from when the message was stored until what dealt with it began"),
    AttributeRow(TIMER, ("process",), "mesh", "of a timer's tick: the timer's id"),
    AttributeRow(REF, ("process", "invoke_agent"), "mesh", "the prompt's ref"),
    AttributeRow(TURN, ("process", "invoke_agent"), "mesh", "the turn's number"),
    AttributeRow(ATTEMPT, ("invoke_agent",), "mesh", "its number among those of its input that the journal has charged, from 1"),
    AttributeRow(ATTEMPT_END, ("invoke_agent",), "mesh", "`ok`, `error`, `lost`, `fenced` or `moved`"),
    AttributeRow(GENERATION, ("invoke_agent",), "mesh", "the owner's generation"),
    AttributeRow(EPOCH, ("invoke_agent",), "mesh", "the mesh's epoch"),
    AttributeRow(BOOT, ("invoke_agent",), "mesh", "the process that ran it"),
    AttributeRow(TAKEOVERS, ("invoke_agent",), "mesh", "nodes that had died with its input before"),
    AttributeRow(COST, ("invoke_agent",), "mesh", "US dollars, without those of the agents that it asked"),
)  # fmt: skip
"""All attributes of these spans. None of them holds content; what users add stands beside them."""
