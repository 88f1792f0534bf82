"""Publishing mail so that it is stored once, however often the publish has to be repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.diagnosis import explain
from agentmesh.edge.failures import PASSING_ERRORS, Uncertain
from agentmesh.edge.publish import Stored, store, store_soon
from agentmesh.edge.retry import CALL_RETRY
from agentmesh.edge.stream_configs import DUPLICATE_WINDOW_S
from agentmesh.edge.streams import duplicate_window
from agentmesh.edge.transport import Transport
from agentmesh.errors import NotPermitted, Unavailable
from agentmesh.names import token
from agentmesh.subjects import Subjects
from agentmesh.wire import Outcome
from agentmesh_client.by_request import store_by_request
from agentmesh_client.client_spans import Sending

SHORTEST_PAUSE_S = 1e-6
"""A shorter pause is not made: no clock would show that it has passed."""
ATTEMPT_S = 5.0
"""Wait for one publish acknowledgement."""
SHORT_S = 2.0
"""With less time than this `Transport.call` is not used: its time-outs are checked only four times a second."""
REPEATABLE_S = 100.0
"""How long a publish of unknown fate is repeated while the mesh's duplicate window is not known."""
REPEATABLE_SHARE = REPEATABLE_S / DUPLICATE_WINDOW_S
"""The same as a share of the window once that is known: the last repetition must arrive within the window."""
LEARN_S = 1.0
"""Wait for one answer to a question about the stream."""
LAST_ATTEMPT_S = 0.05
"""Time that the last attempt needs at least."""
REASON_EVERY = 4
"""Attempts without an answer between two enquiries for the reason."""


class Mailer:
    """Publishes mail with an id, so that a repetition is acknowledged as the first (case 207)."""

    def __init__(self, transport: Transport, ambient: Ambient = SYSTEM, subjects: Subjects | None = None) -> None:
        """`subjects` name the stream whose duplicate window is looked up; without them the protocol's default is assumed."""
        self._transport = transport
        self._subjects = subjects
        self._root = subjects.root if subjects is not None else "mesh"
        self._window_s: float | None = None
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
        by_request: bool = False,
    ) -> Stored:
        """Store one piece of mail, within `timeout` seconds. If its `answer` comes first, that proves that it is stored.
        `by_request`: `subject` is one of the gateway's.

        Raises:
            MailboxFull, TooLarge, BadRequest, NotPermitted: it was refused.
            Unavailable: it could not be stored, or (`details["uncertain"]`) nobody can tell whether it was.
        """
        sending = Sending(subject, headers, self._root)
        failed: BaseException | None = None
        began = _now()
        try:
            try:
                put = store_by_request if by_request else store
                return await put(
                    self._transport, subject, body, headers=headers, msg_id=message_id, timeout=_first_timeout(timeout)
                )
            except PASSING_ERRORS as error:
                retry = _Retry(began, timeout, answer)
                retry.failed(error)
            return await self._repeat(retry, subject, body, headers, message_id, by_request=by_request)
        except BaseException as error:
            failed = error
            raise
        finally:
            sending.end(failed)

    def put_soon(
        self,
        subject: str,
        body: bytes,
        headers: dict[str, str],
        stored: Callable[[Stored | Exception], None],
        *,
        message_id: str,
        timeout: float,
    ) -> bool:
        """The first attempt of `put`, without a task that waits: `stored` is called with the acknowledgement or the error, in the
        loop callback in which that is known. After an error `put_again` goes on.

        Returns: False if nothing can be sent at once, or time is short: use `put`. `stored` is never called then.

        Raises:
            TooLarge, BadRequest: it cannot be sent at all.
        """
        if timeout < SHORT_S:
            return False
        sending = Sending(subject, headers, self._root)

        def answered(published: Stored | Exception) -> None:
            sending.end(published if isinstance(published, Exception) else None)
            stored(published)

        began = False
        try:
            began = store_soon(
                self._transport, subject, body, answered, headers=headers, msg_id=message_id, timeout=_first_timeout(timeout)
            )
        finally:
            if not began:
                sending.drop(headers)
        return began

    async def put_again(
        self,
        subject: str,
        body: bytes,
        headers: dict[str, str],
        failed: Exception,
        *,
        message_id: str,
        began: float,
        timeout: float,
        answer: asyncio.Future[Outcome | None],
    ) -> Stored:
        """Go on as `put` does after a first attempt that `began` at that time of the loop and has `failed`. Returns and raises as
        `put`."""
        if not isinstance(failed, PASSING_ERRORS):
            raise failed
        retry = _Retry(began, timeout, answer)
        retry.failed(failed)
        return await self._repeat(retry, subject, body, headers, message_id)

    async def _repeat(
        self, retry: _Retry, subject: str, body: bytes, headers: dict[str, str], message_id: str, *, by_request: bool = False
    ) -> Stored:
        put = store_by_request if by_request else store
        while await retry.pause():
            if not retry.uncertain and self._subjects is not None and not by_request:
                await self._find_out(retry)
            if retry.uncertain and not await self._may_repeat(retry):
                break
            try:
                return await put(
                    self._transport, subject, body, headers=headers, msg_id=message_id, timeout=retry.attempt_timeout()
                )
            except PASSING_ERRORS as error:
                retry.failed(error)
        return retry.stored_as_answered() or retry.give_up(message_id, self._window_s or DUPLICATE_WINDOW_S)

    async def _find_out(self, retry: _Retry) -> None:
        """Find out why the message is not acknowledged, for the error that its caller may get in the end."""
        if retry.wants_reason and self._subjects is not None:
            reason = await explain(self._transport, self._subjects.stream("mail"), timeout=min(LEARN_S, retry.attempt_timeout()))
            retry.reason = reason if isinstance(reason, Unavailable) else None

    async def _may_repeat(self, retry: _Retry) -> bool:
        """Whether the server still knows the id of a message that it may have stored. The window is asked for once, when
        needed."""
        if self._window_s is None and self._subjects is not None:
            with suppress(Unavailable, NotPermitted):
                self._window_s = await duplicate_window(
                    self._transport, self._subjects, timeout=min(LEARN_S, retry.attempt_timeout())
                )
        return retry.within(REPEATABLE_S if self._window_s is None else self._window_s * REPEATABLE_SHARE)


def _first_timeout(timeout: float) -> float:
    """Seconds that the first attempt may take: half of a short time, so that another try fits in."""
    return min(timeout / 2, ATTEMPT_S)


class _Retry:
    """Whether, and until when, one publish may be repeated."""

    def __init__(self, began: float, timeout: float, answer: asyncio.Future[Outcome | None] | None) -> None:
        self._began = began
        self._end = began + timeout
        self._answer = answer
        self._pauses = iter(CALL_RETRY)
        self.uncertain = False
        """An earlier attempt may have been stored."""
        self.reason: Unavailable | None = None
        """Why the message is not acknowledged, if that is known."""
        self._attempts = 0
        self._error: Unavailable | Uncertain | None = None

    def failed(self, error: Unavailable | Uncertain) -> None:
        """An attempt has failed."""
        self.uncertain |= isinstance(error, Uncertain)
        self._attempts += 1
        self._error = error

    @property
    def wants_reason(self) -> bool:
        """Whether to find out the reason now: it would say more than the last attempt's error."""
        return self._attempts % REASON_EVERY == 0 and type(self._error) is Unavailable

    def within(self, seconds: float) -> bool:
        """Whether the first attempt is less than `seconds` ago: after that there are no more attempts."""
        self._end = min(self._end, self._began + seconds)
        return _now() < self._end

    async def pause(self) -> bool:
        """Wait before the next attempt. False if there is to be none."""
        left = self._end - _now()
        pause = min(next(self._pauses), left - LAST_ATTEMPT_S)  # the last attempt is made when time is nearly up, not before
        if pause < SHORTEST_PAUSE_S:
            return False
        if self._answer is None:
            await asyncio.sleep(pause)
            return True
        return not (await asyncio.wait((self._answer,), timeout=pause))[0]

    def attempt_timeout(self) -> float:
        """Seconds that the next attempt may take."""
        return min(max(self._end - _now(), 0.1), ATTEMPT_S)

    def stored_as_answered(self) -> Stored | None:
        """The acknowledgement that can be told from the answer: it names the message's sequence."""
        outcome = self._answer.result() if self._answer is not None and self._answer.done() else None
        return Stored(int(outcome.ref), False) if outcome is not None and outcome.ref.isdecimal() else None

    def give_up(self, message_id: str, window_s: float) -> NoReturn:
        """Raise the error that the attempts have ended in."""
        cause = self._error
        if self.reason is not None and type(cause) is Unavailable:
            cause = self.reason
        raise _not_stored(message_id, cause, window_s if self.uncertain else None) from self._error


def _now() -> float:
    return asyncio.get_running_loop().time()


def _not_stored(message_id: str, error: Exception | None, window_s: float | None) -> Unavailable:
    """`window_s`: set if nobody can tell whether it was stored; the server knows its id for so long."""
    key = message_id.rpartition(".")[2]
    if window_s is None:
        known = error if isinstance(error, Unavailable) else Unavailable(str(error))
        text = f"the message could not be stored, nothing was sent: {known.message}"
        return type(known)(text, details={**known.details, "uncertain": False})
    return Unavailable(
        "the server did not confirm the message, so it may or may not be stored; send it again with "
        f"idempotency_key={key!r} within {window_s:g} s of the first attempt, and it takes effect once",
        details={"uncertain": True, "idempotency_key": key},
    )
