"""Publishing mail so that it is stored once, however often the publish has to be repeated."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from opentelemetry import context as otel_context
from opentelemetry import propagate

from agentmesh.edge.ambient import SYSTEM, Ambient
from agentmesh.edge.jetstream import Stored, Uncertain, store
from agentmesh.edge.transport import Transport
from agentmesh.errors import Unavailable
from agentmesh.names import token
from agentmesh.wire import Outcome
from agentmesh_client.patience import pauses
from agentmesh_client.permission import last_report, refusal

ATTEMPT_S = 5.0
"""Wait for one publish acknowledgement."""
REPEATABLE_S = 100.0
"""A publish of unknown fate is repeated for this long: safely within the server's duplicate window (protocol: 2 minutes)."""


class Mailer:
    """Publishes mail with an id, so that a repetition is acknowledged as the first (semantics, case 207)."""

    def __init__(self, transport: Transport, ambient: Ambient = SYSTEM) -> None:
        self._transport = transport
        self._nonce = ambient.token(12)  # ids are stream-wide: a stranger must not be able to guess one
        self._count = 0

    def message_id(self, agent: str, key: str | None) -> str:
        """`Nats-Msg-Id` for mail to `agent`: the caller's `key`, else one never used before.

        Raises:
            BadRequest: `key` is not one token.
        """
        if key is not None:
            return f"{agent}.{token(key, 'idempotency key')}"
        self._count += 1
        return f"{agent}.{self._nonce}{self._count:x}"

    async def put(
        self,
        subject: str,
        body: bytes,
        headers: dict[str, str],
        *,
        message_id: str,
        timeout: float,
        answer: asyncio.Future[Outcome | None] | None = None,
    ) -> Stored:
        """Store one piece of mail, within `timeout` seconds. Its `answer`, if that comes first, proves that it is stored.

        Raises:
            MailboxFull, TooLarge, BadRequest, NotPermitted: it was refused.
            Unavailable: it could not be stored, or (`details["uncertain"]`) nobody can tell whether it was.
        """
        if otel_context.get_current():  # an empty context has nothing to carry
            propagate.inject(headers)
        try:
            return await store(
                self._transport, subject, body, headers=headers, msg_id=message_id, timeout=min(timeout, ATTEMPT_S)
            )
        except (Unavailable, Uncertain) as error:
            retry = _Retry(asyncio.get_running_loop().time(), timeout, answer)
            retry.failed(error)
        while await retry.pause():
            forbidden = refusal(last_report(self._transport), subject)
            if forbidden is not None:
                raise forbidden
            try:
                return await store(
                    self._transport, subject, body, headers=headers, msg_id=message_id, timeout=retry.attempt_timeout()
                )
            except (Unavailable, Uncertain) as error:
                retry.failed(error)
        return retry.stored_as_answered() or retry.give_up(message_id)


class _Retry:
    """Whether, and until when, one publish may be repeated."""

    def __init__(self, now: float, timeout: float, answer: asyncio.Future[Outcome | None] | None) -> None:
        # The first attempt took up to ATTEMPT_S of the time; a short timeout still gets another try.
        self._end = now + max(timeout - ATTEMPT_S, min(timeout, 1.0))
        self._answer = answer
        self._pauses = pauses()
        self._uncertain = False
        self._error: Unavailable | Uncertain | None = None

    def failed(self, error: Unavailable | Uncertain) -> None:
        """An attempt has failed."""
        if isinstance(error, Uncertain) and not self._uncertain:
            self._uncertain = True
            self._end = min(self._end, _now() + REPEATABLE_S)
        self._error = error

    async def pause(self) -> bool:
        """Wait before the next attempt. False if there is to be none."""
        pause = next(self._pauses)
        if _now() + pause >= self._end:
            return False
        if self._answer is None:
            await asyncio.sleep(pause)
            return True
        return not (await asyncio.wait((self._answer,), timeout=pause))[0]

    def attempt_timeout(self) -> float:
        """Seconds that the next attempt may take."""
        return min(max(self._end - _now(), 0.1), ATTEMPT_S)

    def stored_as_answered(self) -> Stored | None:
        """What the answer says about where the message was stored."""
        outcome = self._answer.result() if self._answer is not None and self._answer.done() else None
        return Stored(int(outcome.ref), False) if outcome is not None and outcome.ref.isdecimal() else None

    def give_up(self, message_id: str) -> NoReturn:
        """Raise what the attempts have come to."""
        raise _not_stored(message_id, self._error, self._uncertain) from self._error


def _now() -> float:
    return asyncio.get_running_loop().time()


def _not_stored(message_id: str, error: Exception | None, uncertain: bool) -> Unavailable:
    key = message_id.rpartition(".")[2]
    if not uncertain:
        cause = error.message if isinstance(error, Unavailable) else str(error)
        return Unavailable(f"the message could not be stored, nothing was sent: {cause}", details={"uncertain": False})
    return Unavailable(
        "the server did not confirm the message, so it may or may not be stored; send it again with "
        f"idempotency_key={key!r} within two minutes, and it takes effect once",
        details={"uncertain": True, "idempotency_key": key},
    )
