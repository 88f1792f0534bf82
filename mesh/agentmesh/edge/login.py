"""Who a connection is to its servers, and which servers it believes: what may be set, and what the files of it hold.

Files are read when the connection is made and again at each reconnect, so what was rotated meanwhile counts. Secrets are in no
message and no `repr`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import re
import ssl
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from agentmesh.edge.address import checked_urls, without_credentials
from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.refusals import who
from agentmesh.errors import BadRequest
from agentmesh.wire import format_time

log = logging.getLogger("agentmesh.edge")

INBOX = "_INBOX"
"""Where everybody hears answers whose user is not known."""
_KINDS = ("creds", "nkey", "user", "token", "url_file")
_SECRETS = frozenset(("password", "token"))
_PREFIX = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")


class Login(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an operator has set for a connection; "" is not set. `creds`, `nkey`, `url_file` and all of `tls_` but `tls_first` are
    files.

    One of `creds`, `nkey`, `user` (with `password`), `token` and `url_file` says who connects; without any the URL does.
    """

    creds: str = ""
    """As `nsc` and others make them: a user's JWT and the seed that signs for it."""
    nkey: str = ""
    """The seed of a user without a JWT."""
    user: str = ""
    password: str = ""
    token: str = ""
    url_file: str = ""
    """Of URLs, the first of which that has a user says who connects (`urls_of_file`). Set by an address that is `@FILE`."""
    tls_ca: str = ""
    """The authorities that are believed, in PEM, instead of the system's."""
    tls_cert: str = ""
    """This client's own certificate, in PEM."""
    tls_key: str = ""
    """Its key, if that is not in `tls_cert`."""
    tls_first: bool = False
    """Make TLS before the server says anything (its `handshake_first`)."""
    inbox_prefix: str = ""
    """Where answers are heard; else `_INBOX.<user>`."""

    def __repr__(self) -> str:
        shown = {name: "***" if name in _SECRETS else value for name, value in msgspec.structs.asdict(self).items() if value}
        return f"Login({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def names_somebody(self) -> bool:
        """Whether it says who connects."""
        return any(getattr(self, kind) for kind in _KINDS)

    @property
    def wants_tls(self) -> bool:
        """Whether nothing is sent to a server without TLS."""
        return bool(self.tls_ca or self.tls_cert or self.tls_first)

    def checked(self) -> Login:
        """Itself.

        Raises:
            BadRequest: its parts cannot be meant together.
        """
        named = [kind for kind in _KINDS if getattr(self, kind)]
        if len(named) > 1:
            raise BadRequest(f"{' and '.join(named)} are given, and each says who connects: give one of them")
        if self.password and not self.user:
            raise BadRequest("a password is given, and no user")
        if self.tls_key and not self.tls_cert:
            raise BadRequest("the key of a client certificate is given (tls_key), and no certificate (tls_cert)")
        if self.inbox_prefix and not _PREFIX.fullmatch(self.inbox_prefix):
            raise BadRequest(f"{self.inbox_prefix!r} is no prefix of subjects, as `_INBOX.shop`")
        return self


NO_LOGIN = Login()


class _Claims(msgspec.Struct):
    name: str = ""
    sub: str = ""
    exp: float = 0


class _Keys(NamedTuple):
    """A user that signs what the server sends."""

    pair: Any
    """An `nkeys.KeyPair`."""
    public: str
    jwt: str
    name: str
    expires: float
    """Seconds since 1970; 0 is never."""


class Credentials:
    """What a connection shows to its servers."""

    def __init__(self, login: Login, urls: Sequence[str]) -> None:
        """Read the files that `login` names. `urls` are checked.

        Raises:
            BadRequest: a file cannot be read, or is not what it should be.
        """
        self.login = login.checked()
        self._first = _user_of(urls_of_file(login.url_file) if login.url_file else urls)
        self._keys = _keys(login)
        self.tls = _tls(login)
        """None: as the system has it."""
        self._stale = False

    @property
    def reads_files(self) -> bool:
        """Whether `refresh` has anything to read."""
        login = self.login
        return bool(login.creds or login.nkey or login.url_file or login.tls_ca or login.tls_cert)

    @property
    def known(self) -> bool:
        """Whether anything is to be shown."""
        return self.login.names_somebody or bool(self._first.username)

    @property
    def identifies(self) -> bool:
        """Whether the server can tell by it who connects."""
        return self.known or bool(self.login.tls_cert)

    def derived(self, purpose: str) -> str | None:
        """A secret for `purpose` that every client of this user makes alike and nobody else can, in hex; None: nothing that it
        shows is secret."""
        if self._keys is not None:
            secret = bytes(self._keys.pair.seed)
        elif self.login.tls_cert and not self.known:
            secret = _text(self.login.tls_key or self.login.tls_cert, "key of the client certificate").encode()
        else:
            _, password, token = self.plain(self._first)
            secret = (password or token or "").encode()
        return hmac.new(secret, purpose.encode(), hashlib.sha256).hexdigest() if secret else None

    def refresh(self) -> None:
        """Read the files again. What can no longer be read stays as it was."""
        try:
            first = _user_of(urls_of_file(self.login.url_file)) if self.login.url_file else self._first
            self._keys, self.tls, self._first = _keys(self.login), _tls(self.login), first
        except BadRequest as error:
            if not self._stale:
                log.warning("%s; what it held before is used", error.message)
            self._stale = True
        else:
            self._stale = False

    def plain(self, url: Any) -> tuple[str | None, str | None, str | None]:
        """User, password and token for the server at `url`, a split one; those of the URL are decoded. A server without any (one
        that others have named) gets those of the first URL that has some."""
        login = self.login
        if login.names_somebody and not login.url_file:
            return login.user or None, login.password if login.user else None, login.token or None
        parts = url if url.username else self._first
        if not parts.username:
            return None, None, None
        if parts.password is None:
            return None, None, unquote(parts.username)
        return unquote(parts.username), unquote(parts.password), None

    @property
    def signs(self) -> bool:
        """Whether the server's nonce is signed."""
        return self._keys is not None

    def signature(self, nonce: str) -> bytes:
        """The signature that the server asks for, in base64."""
        assert self._keys is not None
        return base64.b64encode(self._keys.pair.sign(nonce.encode()))

    def jwt(self) -> bytes:
        """The user's JWT; empty for a bare nkey."""
        return b"" if self._keys is None else self._keys.jwt.encode()

    @property
    def public(self) -> str | None:
        """The public key of a user without a JWT."""
        return self._keys.public if self._keys is not None and not self._keys.jwt else None

    def words(self, url: Any) -> str:
        """Who this is to the server at `url`, for people."""
        if self._keys is not None:
            over = 0 < self._keys.expires < SYSTEM.now()
            expired = f", which expired at {format_time(self._keys.expires)}" if over else ""
            return f"user {self._keys.name or self._keys.public!r} ({self.login.creds or self.login.nkey}{expired})"
        user, password, token = self.plain(url)
        if user is None and token is None and self.login.tls_cert:
            return f"the bearer of the certificate {self.login.tls_cert}"
        return who(user or token, password)

    def inbox_prefix(self) -> str:
        """Where this user hears answers: what is set, else `_INBOX.<user>`, else, if its name is no token, `_INBOX`."""
        if self.login.inbox_prefix:
            return self.login.inbox_prefix
        if self._keys is not None:
            user: str | None = self._keys.name or self._keys.public
        else:
            user, _, _ = self.plain(self._first)
        return f"{INBOX}.{user}" if user and user.isascii() and user.isprintable() and _PREFIX.fullmatch(user) else INBOX


def urls_of_file(path: str) -> list[str]:
    """The servers' URLs in a file, as `mesh access` writes it: separated by commas or lines, users and passwords in them.

    Raises:
        BadRequest: it cannot be read, or holds no server's address.
    """
    text = _text(path, "file of server addresses")
    try:
        return checked_urls([part for part in re.split(r"[\s,]+", text) if part])
    except BadRequest:
        raise BadRequest(f"{path} holds no server's address; for example nats://shop:PASSWORD@127.0.0.1:4222") from None


def without_users(urls: Sequence[str]) -> list[str]:
    """`urls`, which are checked, without users and passwords."""
    return [without_credentials(url) if _parts(url).username else url for url in urls]


def names_user(urls: Sequence[str]) -> bool:
    """Whether one of `urls`, which are checked, has a user."""
    return bool(_user_of(urls).username)


def _user_of(urls: Sequence[str]) -> SplitResult:
    return next((parts for url in urls if (parts := _parts(url)).username), SplitResult("", "", "", "", ""))


def _parts(url: str) -> SplitResult:
    return urlsplit(url if "://" in url else f"nats://{url}")


def _text(path: str, what: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="ascii")
    except OSError as error:
        raise BadRequest(f"the {what} {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise BadRequest(f"{path} is no {what}: it holds other bytes than text") from None


def _keys(login: Login) -> _Keys | None:
    if login.creds:
        what = "credentials file"
        lines = [line.strip() for line in _text(login.creds, what).splitlines() if line.strip()]
        jwt, seed = _behind(lines, "BEGIN NATS USER JWT"), _behind(lines, "BEGIN USER NKEY SEED")
        if not jwt or not seed:
            lacks = "JWT" if not jwt else "seed (NKEY SEED)"
            raise BadRequest(f"{login.creds} is no {what}: it lacks a user's {lacks}; have the operator make it again")
        claims = _claims(jwt, login.creds)
        pair, public = _pair(seed, login.creds)
        if claims.sub and claims.sub != public:
            raise BadRequest(f"the JWT and the seed in {login.creds} are not of one user; have the operator make it again")
        return _Keys(pair, public, jwt, claims.name, claims.exp)
    if login.nkey:
        pair, public = _pair(_text(login.nkey, "nkey file").strip(), login.nkey)
        return _Keys(pair, public, "", "", 0)
    return None


def _behind(lines: list[str], mark: str) -> str:
    return next((line for before, line in pairwise(lines) if mark in before), "")


def _claims(jwt: str, path: str) -> _Claims:
    try:
        body = jwt.split(".")[1]
        return msgspec.json.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=_Claims)
    except (IndexError, ValueError, msgspec.MsgspecError):
        raise BadRequest(f"the JWT in {path} cannot be read; have the operator make the file again") from None


def _pair(seed: str, path: str) -> tuple[Any, str]:
    try:
        import nkeys  # noqa: PLC0415 - an extra, and only some connections sign
    except ImportError:
        raise BadRequest(f"to sign with {path} the extra `nkeys` is needed: install agentmesh[nkeys]") from None
    try:
        pair = nkeys.from_seed(bytearray(seed.encode()))
        public = str(pair.public_key, "ascii")
    except Exception:  # noqa: BLE001 - it raises errors of many kinds; the seed is in none of ours
        raise BadRequest(f"{path} holds no nkey's seed, which begins with SU") from None
    if not public.startswith("U"):
        raise BadRequest(f"the seed in {path} is not a user's, which begins with SU")
    return pair, public


def _tls(login: Login) -> ssl.SSLContext | None:
    if not login.wants_tls:
        return None
    try:
        context = ssl.create_default_context(cafile=str(Path(login.tls_ca).expanduser()) if login.tls_ca else None)
    except (OSError, ValueError) as error:
        raise BadRequest(f"{login.tls_ca} holds no certificates of authorities in PEM ({_reason(error)})") from None
    if login.tls_cert:
        cert, key = (str(Path(path).expanduser()) if path else None for path in (login.tls_cert, login.tls_key))
        for path in filter(None, (login.tls_cert, login.tls_key)):
            _text(path, "client certificate" if path == login.tls_cert else "key of the client certificate")
        try:
            context.load_cert_chain(str(cert), key, password="")  # what is encrypted is not asked for on the terminal
        except (OSError, ValueError) as error:
            raise BadRequest(
                f"{login.tls_cert} and {login.tls_key or 'the key in it'} are no certificate and its unencrypted key in PEM "
                f"({_reason(error)})"
            ) from None
    return context


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
