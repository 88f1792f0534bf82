"""What the server refuses to one connection, as far as it lasts: subscriptions, the inbox, the credentials."""

from __future__ import annotations

import logging
from collections.abc import Callable

from agentmesh.edge.first_connection import AddressAnswer, Attempt, answer_of
from agentmesh.edge.pending_requests import PendingRequests
from agentmesh.edge.refusals import bad_credentials, forbidden, violation
from agentmesh.errors import NotPermitted

log = logging.getLogger("agentmesh.edge")


MOST_TOLD = 1000


class Refusals:
    """Hears what the server refuses, fails what waits for it, and keeps what stays refused."""

    def __init__(self, connection: str, inbox: str, pending: PendingRequests) -> None:
        """`inbox` is the subscription by which the replies come."""
        self._connection = connection
        self._inbox = inbox
        self._pending = pending
        self._errors: dict[str, NotPermitted] = {}
        """Subscriptions, by subject; under the empty one the credentials."""
        self._told: set[str] = set()
        """Subjects of requests that were failed because the server forbids them."""
        self._callbacks: list[tuple[Callable[[NotPermitted], None], bool]] = []
        self.deaf: NotPermitted | None = None
        """Set when no reply can be heard: the inbox is refused."""

    @property
    def first(self) -> NotPermitted | None:
        """See `Transport.refusal`."""
        return next(iter(self._errors.values()), None)

    def on_refused(self, callback: Callable[[NotPermitted], None], tells: bool = True) -> Callable[[], None]:
        """See `Transport.on_refused`."""
        entry = callback, tells
        self._callbacks = [*self._callbacks, entry]
        return lambda: self._callbacks.remove(entry)

    def hear(self, line: str, user: str) -> bool:
        """Take an error line of the server for this connection's `user`. Returns whether it is about a permission."""
        refused = violation(line)
        if refused is None:
            return False
        error = forbidden(refused, user)
        if refused.act == "publish":
            if self._pending.fail(error, refused.subject):
                if len(self._told) < MOST_TOLD:
                    self._told.add(refused.subject)
            else:
                # Requests that were failed together have an error line each; and where no reply is heard, all were failed before.
                told = self.deaf is not None or refused.subject in self._told
                level = logging.DEBUG if told else logging.WARNING
                log.log(level, "a message was not sent: %s", error.message, extra={"connection": self._connection})
            return True
        if refused.subject == self._inbox:
            self.deaf = error
            self._pending.fail(error, None)
        self._keep(refused.subject, error)
        return True

    def rejected_again(self, attempt: Attempt) -> None:
        """Note whether a lost connection is not restored because its credentials are refused."""
        if "" not in self._errors and answer_of(attempt) is AddressAnswer.REJECTED:
            self._keep("", bad_credentials(attempt.user, attempt.address))

    def disconnected(self) -> None:
        """Forget what the lost connection was refused; whether it may be restored is not known yet."""
        self.deaf = None
        self._errors = {subject: error for subject, error in self._errors.items() if not subject}
        self._told.clear()

    def restored(self) -> None:
        """The credentials were accepted."""
        self._errors.pop("", None)

    def _keep(self, subject: str, error: NotPermitted) -> None:
        self._errors[subject] = error
        # Who has asked to hear of it says it, or can do without; where no reply is heard, so does everybody who asks anything.
        level = logging.INFO if any(tells for _, tells in self._callbacks) else logging.ERROR
        level = level if self.deaf is None else logging.DEBUG
        log.log(level, "%s", error.message, extra={"connection": self._connection})
        for callback, _ in self._callbacks:
            callback(error)
