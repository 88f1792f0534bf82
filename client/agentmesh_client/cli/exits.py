"""Exit codes of `mesh`, and the exit code of each error."""

from __future__ import annotations

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
TIMED_OUT = 4
UNREACHABLE = 5
NOT_PERMITTED = 6
INTERRUPTED = 130

HELP = (
    "Exit codes: 0 ok, 1 the task failed, 2 usage, 3 not found, 4 timed out, 5 NATS cannot be reached, 6 not permitted, "
    "130 interrupted."
)


def code(error: Exception) -> int:
    """The exit code for `error`."""
    from agentmesh import errors

    if isinstance(error, errors.NotPermitted):
        return NOT_PERMITTED
    if isinstance(error, errors.TlsFailed):
        return UNREACHABLE
    if isinstance(error, errors.NotFound):
        return NOT_FOUND
    if isinstance(error, errors.AskTimeout):
        return TIMED_OUT
    if isinstance(error, errors.StoreFull):
        return FAILED  # the server is there, and refuses
    if isinstance(error, errors.Unavailable):
        # The agent waits for a node: the wait timed out, the mesh can be reached.
        return TIMED_OUT if "status" in error.details else UNREACHABLE
    if isinstance(error, errors.BadRequest | errors.TooLarge | errors.InvalidAgent):
        return USAGE
    return FAILED


def sentence(error: BaseException) -> str:
    """`error` in one line."""
    if (said := getattr(error, "description", "")) and hasattr(error, "err_code"):
        return f"JetStream refuses it: {said}"
    text = str(getattr(error, "message", "") or error) or type(error).__name__
    if not hasattr(error, "message"):
        text = f"{type(error).__name__}: {text}" if str(error) else text
    return " ".join(text.split())
