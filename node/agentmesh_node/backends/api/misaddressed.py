"""What to say of an address that does not speak its backend's protocol: which it speaks, and what is to be set (case 744)."""

from __future__ import annotations

from agentmesh.errors import BackendError
from agentmesh_node.backends.api.protocols import NAMES, Protocol, ask

_ABSENT = frozenset({404, 405, 501})
_NO_HTTP = frozenset({"RemoteProtocolError", "ReadError"})
"""What the SDKs' HTTP library raises where something else than a server of HTTP speaks, or closes the connection."""
VARIABLES: dict[Protocol, str] = {"messages": "ANTHROPIC_BASE_URL", "chat": "OPENAI_BASE_URL", "responses": "OPENAI_BASE_URL"}
LIMIT_S = 5.0


def suspect(found: BackendError, error: Exception, model: str) -> bool:
    """Whether a failure may be that of an address: a path that does not exist, or something that is no HTTP.

    Args:
        error: what the SDK raised.
        model: the one that was asked for. A server that names it in its complaint has the path, and not the model.
    """
    if found.details.get("reason") == "connection":
        return type(error.__cause__ or error).__name__ in _NO_HTTP
    return found.details.get("status") in _ABSENT and model not in found.message


async def explained(found: BackendError, wanted: Protocol, address: str, key: str | None) -> BackendError:
    """`found`, or what is the matter with the address in its place. Asks the server, within seconds.

    Args:
        wanted: what the backend speaks.
        address: as the SDK has it.
        key: what the server was sent already.
    """
    variable = VARIABLES[wanted]
    try:
        spoken = await ask(address, key, limit_s=LIMIT_S)
    except BackendError as other:
        if other.details.get("reason") == "not_found":  # it may mean the model after all
            return BackendError(f"{found.message}, or mend {variable}: {other.message}", details=found.details)
        if "what listens there" in other.message:
            return _bad(f"{other.message}; mend {variable} in the node's environment", found)
        return found
    right = spoken.addresses.get(wanted)
    if right is not None:
        if right.rstrip("/") == address.rstrip("/"):
            return found
        return _bad(f"{address} is not where {NAMES[wanted]} is: set {variable}={right} in the node's environment", found)
    return _bad(f"{address} speaks {spoken.names()}, not {NAMES[wanted]}: {_way(wanted, spoken.addresses)}", found)


def _way(wanted: Protocol, there: dict[Protocol, str]) -> str:
    for other in ("chat", "responses"):
        if other in there:
            if wanted != "messages":
                return f"`mesh set AGENT --backend-option api={other}`"
            return f"start the agent with `--backend openai`, on a node with OPENAI_BASE_URL={there[other]}"
    return f"start the agent with `--backend anthropic`, on a node with ANTHROPIC_BASE_URL={there['messages']}"


def _bad(message: str, found: BackendError) -> BackendError:
    return BackendError(message, details={**found.details, "reason": "bad_address", "retryable": False})
