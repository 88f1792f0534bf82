"""Prompts that a caller waits for: sent as mail, and followed to their outcome."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, TypedDict

from agentmesh import wire
from agentmesh.edge.publish import Stored
from agentmesh.errors import AskTimeout, NotPermitted, Unavailable
from agentmesh.keys import KEY, KEY_DIGEST, digest_of
from agentmesh.names import agent_name
from agentmesh.subjects import Subjects
from agentmesh.wire import Attachment, Outcome
from agentmesh_client.client_spans import AgentCall
from agentmesh_client.late_prompts import LatePrompts
from agentmesh_client.mailer import Mailer
from agentmesh_client.pending_asks import PendingAsk, PendingAsks
from agentmesh_client.retry import patiently
from agentmesh_client.server_time import CallersClock
from agentmesh_client.spec_cache import SpecCache
from agentmesh_client.streaming import LiveTurn
from agentmesh_client.validation import budget_header, instant, prompt_message, seconds
from agentmesh_client.ways import Ways


class PromptOptions(TypedDict, total=False):
    """What may go with a prompt: further keywords of `Mesh.ask` (which says what each means), `ask_outcome`, `stream` and `tell`.

    None is as good as absent.
    """

    metadata: Mapping[str, Any] | None
    attachments: Sequence[Attachment] | None
    deadline: dt.datetime | None
    end_by: dt.datetime | None
    idempotency_key: str | None
    budget: Mapping[str, float] | None
    key: str | None


_KNOWN = PromptOptions.__optional_keys__


class PromptRequest(NamedTuple):
    """One prompt as its caller gave it."""

    agent: str
    prompt: str
    timeout: float
    options: PromptOptions

    @classmethod
    def of(cls, call: str, agent: str, prompt: str, timeout: float, options: PromptOptions) -> PromptRequest:
        """The prompt of a `call` of that name.

        Raises:
            TypeError: an option is none of `PromptOptions`. A type checker finds it too; this is for programs that use none.
        """
        if options and not options.keys() <= _KNOWN:
            unknown = next(name for name in options if name not in _KNOWN)
            raise TypeError(f"{call}() got an unexpected keyword argument {unknown!r}; it takes {', '.join(sorted(_KNOWN))}")
        return cls(agent, prompt, timeout, options)

    def message(self) -> tuple[bytes, dict[str, str]]:
        """Body and headers, except those that depend on the agent's life and on how the answer comes back.

        Raises:
            BadRequest: a value makes no sense.
        """
        options = self.options
        if not options:
            return prompt_message(self.prompt)
        body, headers = prompt_message(self.prompt, options.get("metadata"), options.get("attachments"))
        if (deadline := options.get("deadline")) is not None:
            headers[wire.DEADLINE] = instant(deadline, "deadline")
        if (end_by := options.get("end_by")) is not None:
            headers[wire.END_BY] = instant(end_by, "end_by")
        if (budget := options.get("budget")) is not None:
            headers[wire.BUDGET] = budget_header(budget)
        return body, headers


class AskSender:
    """Sends prompts and waits for their outcomes. `Mesh.ask` and `Mesh.stream` say what is raised."""

    def __init__(
        self,
        subjects: Subjects,
        specs: SpecCache,
        asks: PendingAsks,
        mailer: Mailer,
        late_prompts: LatePrompts,
        *,
        clock: CallersClock,
        ways: Ways,
    ) -> None:
        self._ways = ways
        self._subjects = subjects
        self._specs = specs
        self._asks = asks
        self._mailer = mailer
        self._late_prompts = late_prompts
        self._clock = clock

    async def ask(self, given: PromptRequest, on_accepted: Callable[[str], None] | None = None) -> Outcome:
        """Send a prompt and return its outcome; `on_accepted` is called with its ref."""
        call = AgentCall(given.agent)
        try:
            with call.current():
                outcome = await self._outcome(given, on_accepted)
            call.ended(outcome)
        except BaseException as error:
            call.failed(error)
            raise
        finally:
            call.end()
        return outcome

    async def _outcome(self, given: PromptRequest, on_accepted: Callable[[str], None] | None) -> Outcome:
        body, headers, patience = await self._message(given)
        ask = self._asks.open(given.agent)
        timer = asyncio.get_running_loop().call_later(patience, ask.give_up)
        try:
            if self._ways.access is not None or given.options:
                self._addressed(given, ask, headers)
            if on_accepted is not None or ask.by_request or not await self._answered_soon(given, ask, body, headers, patience):
                await self._send(given, ask, body, headers, patience)
                if on_accepted is not None and ask.ref is not None:
                    on_accepted(ask.ref)
                await ask.outcome
            return self._result(given.timeout, ask)
        except Unavailable as error:
            if self._asks.refused is None:
                raise
            raise _refused(self._asks.refused, error.message, error.details) from error
        finally:
            timer.cancel()
            await self._asks.end(ask)

    @asynccontextmanager
    async def stream(self, given: PromptRequest) -> AsyncIterator[LiveTurn]:
        """Send a prompt; within the block its turn can be watched."""
        body, headers, patience = await self._message(given)
        ask = self._asks.open(given.agent)
        headers[wire.STREAM_TO] = ask.stream_to
        turn = LiveTurn(ask, partial(self._result, given.timeout))
        timer = asyncio.get_running_loop().call_later(patience, ask.give_up)
        call = AgentCall(given.agent)
        try:
            self._addressed(given, ask, headers)
            with call.current():
                await self._send(given, ask, body, headers, patience)
            yield turn
        except BaseException as error:
            call.failed(error)
            raise
        finally:
            call.end()
            timer.cancel()
            await self._asks.end(ask)

    async def life(self, agent: str, timeout: float) -> tuple[str, float]:
        """The incarnation to address, and what is left of `timeout`."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        life = await patiently(lambda: self._specs.life(agent), timeout)
        return life, max(timeout - (loop.time() - began), 0.05)

    async def _message(self, given: PromptRequest) -> tuple[bytes, dict[str, str], float]:
        """Body and headers, and how long to wait from now."""
        body, headers = given.message()
        patience = seconds(given.timeout)
        await self._clock.put_right(headers)
        if self._ways.access is not None and await self._ways.by_request(agent_name(given.agent), timeout=patience):
            return body, headers, patience  # the gateway looks the agent up
        life = self._specs.lives.get(given.agent)
        if life is None:
            life, patience = await self.life(given.agent, patience)
        headers[wire.FOR] = life
        return body, headers, patience

    def _addressed(self, given: PromptRequest, ask: PendingAsk, headers: dict[str, str]) -> None:
        """Say in `ask` by which way it goes, and put its key into `headers`."""
        key = given.options.get("key")
        ask.by_request = wire.FOR not in headers  # `_message` has chosen: another connection may say otherwise by now
        if key is not None or ask.by_request:
            ask.secret = self._ways.key_for(given.agent, key, by_request=ask.by_request)
            headers.update(key_headers(ask.secret, by_request=ask.by_request))

    async def _send(self, given: PromptRequest, ask: PendingAsk, body: bytes, headers: dict[str, str], patience: float) -> None:
        """Store the prompt; `ask` knows its ref then."""
        headers[wire.REPLY_TO] = ask.reply_to
        ask.message_id = self._mailer.message_id(given.agent, given.options.get("idempotency_key"))
        stored = await self._mailer.put(
            (self._subjects.tell if ask.by_request else self._subjects.inbox)(given.agent),
            body,
            headers,
            message_id=ask.message_id,
            timeout=patience,
            answer=ask.outcome,
            by_request=ask.by_request,
        )
        self._accept(ask, headers.get(wire.FOR, ""), stored)
        if stored.duplicate:
            await self._asks.follow(ask)

    async def _answered_soon(
        self, given: PromptRequest, ask: PendingAsk, body: bytes, headers: dict[str, str], patience: float
    ) -> bool:
        """Store the prompt and wait for the end of `ask` without waking up when it is stored (most are stored at once).

        Returns: False if nothing could be sent at once.
        """
        headers[wire.REPLY_TO] = ask.reply_to
        subject, life = self._subjects.inbox(given.agent), headers[wire.FOR]
        message_id = ask.message_id = self._mailer.message_id(given.agent, given.options.get("idempotency_key"))
        began, first = asyncio.get_running_loop().time(), ask.outcome

        def stored(published: Stored | Exception) -> None:
            if isinstance(published, Stored) and not published.duplicate:
                self._accept(ask, life, published)
            else:
                ask.interrupt(published)

        if not self._mailer.put_soon(subject, body, headers, stored, message_id=message_id, timeout=patience):
            return False
        await first
        if (published := ask.published) is not None:
            if not isinstance(published, Stored):
                published = await self._mailer.put_again(
                    subject, body, headers, published, message_id=message_id, began=began, timeout=patience, answer=ask.outcome
                )
            self._accept(ask, life, published)
            if published.duplicate:
                await self._asks.follow(ask)
            await ask.outcome
        return True

    def _accept(self, ask: PendingAsk, life: str, stored: Stored) -> None:
        """The prompt is stored: its ref is known, and an answer may be looked up."""
        ask.ref, ask.life = str(stored.seq), life
        self._ways.remember(ask.agent, ask.ref, ask.secret)
        if self._specs.over(ask.agent, life):
            self._late_prompts.ended(ask.agent, life)

    def _result(self, timeout: float, ask: PendingAsk) -> Outcome:
        """The outcome that the wait, which is over, has brought; raises if there is none."""
        outcome = ask.outcome.result()
        if outcome is not None:
            if outcome.error is not None and outcome.error.code == "stopped":
                self._specs.forget(ask.agent)  # the life that was addressed is over: read the spec before the next ask
            return outcome
        details = {"agent": ask.agent, "ref": ask.ref}
        if self._asks.closed:
            raise Unavailable("the client was closed while the agent was asked; the request stands", details=details)
        stands = f"the request stands: `mesh poll {ask.agent} {ask.ref}`"
        if self._asks.refused is not None:
            raise _refused(self._asks.refused, f"no answer can be heard; {stands}", details)
        raise AskTimeout(
            f"agent {ask.agent!r} did not answer within {timeout:g} s; {stands}",
            details=details,
        )


def key_headers(key: str | None, *, by_request: bool) -> dict[str, str]:
    """The header of a request's key: mail bears its digest, so that the key itself is not stored."""
    if key is None:
        return {}
    return {KEY: key} if by_request else {KEY_DIGEST: digest_of(key)}


def _refused(error: NotPermitted, what: str, details: Mapping[str, Any]) -> NotPermitted:
    """`error`, which has ended the wait for a request, with what has become of that."""
    return NotPermitted(f"{error.message}; {what}", details={**error.details, **details})
