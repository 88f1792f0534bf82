"""By which way a caller reaches agents: mail and streams where its user may, plain requests to the gateway where it may not; and
the keys of the requests that it makes (docs/design/044-callers-by-request.md)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from agentmesh.edge.address import API
from agentmesh.edge.clock import Ambient
from agentmesh.edge.permissions import Permissions
from agentmesh.keys import KEY, digest_of
from agentmesh.subjects import Subjects
from agentmesh_client.retry import patiently

ASKED_S = 5.0
"""How long to wait until a server says what a user may do."""
MOST_KEYS = 16_384
"""Requests whose keys are remembered; the oldest are forgotten first."""


class Ways:
    """What one client may do. Without a login all is open, and nothing is asked."""

    def __init__(
        self,
        subjects: Subjects,
        ambient: Ambient,
        access: Permissions | None = None,
        secret: Callable[[str], str | None] = lambda purpose: None,
    ) -> None:
        """
        Args:
            access: what the user may do; None: nobody restricts it.
            secret: makes a secret of the user's login for a purpose (`Credentials.derived`).
        """
        self._subjects = subjects
        self._ambient = ambient
        self.access = access
        self._secret = secret
        self._keys: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._own: dict[str, str] = {}

    async def by_request(self, agent: str, lane: str = "inbox", *, timeout: float = ASKED_S) -> bool:
        """Whether mail for that lane of `agent` goes by request: its user has a list of what it may, and that is not in it.

        Raises:
            Unavailable: for `timeout` seconds no server has said what its user may do.
        """
        access = self.access
        if access is None:
            return False
        if not access.told:
            await patiently(access.learn_now, timeout)
        return await access.forbids(self._subjects.lane(lane, agent)) and access.confined

    async def asks_for_results(self, agent: str, ref: str) -> bool:
        """Whether outcomes are asked of the gateway, as this user may not read them."""
        if self.access is None:
            return False
        stream, subject = self._subjects.stream("result"), self._subjects.result(agent, ref)
        reads = (f"{API}.STREAM.MSG.GET.{stream}", f"{API}.DIRECT.GET.{stream}", f"{API}.DIRECT.GET.{stream}.{subject}")
        return await self.access.forbids(*reads)

    def may_hear(self, subject: str) -> bool:
        """Whether a subscription is worth a try."""
        return self.access is None or self.access.may_subscribe(subject) is not False

    # --- keys -----------------------------------------------------------------------------------------------------
    def key_for(self, agent: str, given: str | None, *, by_request: bool) -> str | None:
        """The key of a request: the one that is given, else, of a caller that reaches agents by request only, one of its own.

        Raises:
            BadRequest: what is given can be no key.
        """
        if given is not None:
            digest_of(given)
            return given
        return self._users(agent) if by_request else None

    def remember(self, agent: str, ref: str, key: str | None) -> None:
        """This client has made that request, with that key."""
        if key is None:
            return
        self._keys[agent, ref] = key
        if len(self._keys) > MOST_KEYS:
            self._keys.popitem(last=False)

    async def key_of(self, agent: str, ref: str, given: str | None) -> str | None:
        """The key by which to ask about a request."""
        if given is not None:
            digest_of(given)
            return given
        known = self._keys.get((agent, ref))
        if known is not None or not await self.by_request(agent):
            return known
        return self._users(agent)

    def _users(self, agent: str) -> str:
        """The user's own key for requests to `agent`: every client of the user has the same one, so that each may take up, poll
        and cancel what another has asked. Where the login holds no secret, it is this client's alone."""
        if agent not in self._own:
            self._own[agent] = self._secret(f"{KEY} {self._subjects.root} {agent}") or self._ambient.token(24)
        return self._own[agent]
