"""Headers, prompts, events, outcomes: what crosses a process outside the journal (protocol version 1).

The registry's values are in `registry_values.py`, control requests in `control_values.py`.

Evolution: fields are only added, with defaults; readers ignore fields they do not know; `v` is the protocol's version.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from agentmesh import carried, times
from agentmesh.budget import Limits
from agentmesh.carried import NOTHING_CARRIED, TIME_STAMP, carried_in
from agentmesh.errors import BadRequest, MeshError, error_for
from agentmesh.headers import is_json, message_id
from agentmesh.identity import Party
from agentmesh.keys import KEY, KEY_DIGEST, digest_in
from agentmesh.names import reply_subject
from agentmesh.renamed import attributes
from agentmesh.subjects import Lane
from agentmesh.tool_runs import Counts

# --- headers ------------------------------------------------------------------------------------------------------
REPLY_TO = "Mesh-Reply-To"
STREAM_TO = "Mesh-Stream-To"
FOR = "Mesh-For"
FROM = "Mesh-From"
FROM_LIFE = "Mesh-From-Life"
ORIGIN = "Mesh-Origin"
TAG = "Mesh-Tag"
RELAYED = "Mesh-Relayed"
"""Header of a control request that a gateway sends on, its operation in the body, for owners of an older build, which know that
form alone: an owner that knows the other one has heard the request itself and passes over this one."""
MSG_ID = "Nats-Msg-Id"
ROOT, PATH, DEADLINE, TIMEOUT, END_BY, BUDGET, CHAIN = (
    carried.ROOT, carried.PATH, carried.DEADLINE, carried.TIMEOUT, carried.END_BY, carried.BUDGET, carried.CHAIN,
)  # fmt: skip

VERSION = 1
HEADER_ROOM = 4096
"""Bytes that a message's own headers may need beside its body."""
MAIL_ROOM = 64 * 1024
"""By how many bytes the size limit of mail is below the server's `max_payload`: a body can always be passed on with headers."""
MAX_DEPTH = 100
"""How deeply the JSON of a prompt, an event, or a spec's options may be nested."""
_TOO_DEEP = f"the JSON is nested deeper than {MAX_DEPTH} levels: send it flatter, or as text inside a string"


parse_time, format_time, check_time = times.parse_time, times.format_time, times.check_time
parse_timeout = carried.parse_timeout
MAX_TIME = times.MAX_TIME


# --- prompts and events -------------------------------------------------------------------------------------------
class Attachment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file sent with a prompt; `content` is base64."""

    filename: str
    content: str


class PromptBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A prompt, as a caller sends it."""

    prompt: str
    metadata: dict[str, Any] = {}
    attachments: tuple[Attachment, ...] = ()


class Mail(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One stored message of a mail lane, decoded as far as its headers.

    `seq` is its sequence in the lane's stream. `sender`, `sender_life`, `origin`, `tag`, `path` and `chain` are set on trusted
    lanes only. `problem` is set when the message cannot be what its lane carries: it becomes a dead letter.
    """

    lane: str
    seq: int
    prompt: PromptBody | None = None
    event: Any = None
    reply_to: str | None = None
    stream_to: str | None = None
    deadline: float | None = None
    for_life: str | None = None
    sender: str | None = None
    sender_life: str | None = None
    origin: str | None = None
    tag: str | None = None
    path: tuple[str, ...] = ()
    msg_id: str | None = None
    budget: Limits | None = None
    """This, `root`, `path`, `trace`, `chain`, `deadline` and `end_by`: what it carries (agentmesh.carried.Carried)."""
    root: str | None = None
    end_by: float | None = None
    stored: str | None = None
    """When the server stored it, in its own words (RFC 3339)."""
    trace: dict[str, str] = {}
    chain: tuple[Party, ...] = ()
    problem: str | None = None
    schedule: str | None = None
    """`due` lane: the subject of the schedule that fired (`Nats-Scheduler`)."""
    key: str | None = None
    """The digest of the key that its caller has given it (agentmesh.keys)."""
    repeats: str | None = None
    """The ref of the message that had this one's `msg_id` first, as the agent's owner knows it (agentmesh.message_ids)."""

    @property
    def ref(self) -> str:
        """The ref of a prompt: its stream sequence in decimal."""
        return str(self.seq)


_JSON_HEADS = b'{["-0123456789tfn'
_JSON_SPACE = b" \t\r\n"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TEXT: Any = object()
"""Stands for text that is no JSON."""
_prompt_decoder = msgspec.json.Decoder(PromptBody)
_json_decoder = msgspec.json.Decoder()


def decode_prompt(body: bytes, headers: Mapping[str, str]) -> PromptBody:
    """The prompt in `body`: plain text, or JSON that is declared as such or has the shape of a prompt. A byte order mark ahead of
    it is dropped.

    Raises:
        BadRequest: empty, not UTF-8, JSON of another shape, declared as JSON and cut, or an attachment that is not base64.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK)
    if not body:
        raise BadRequest("the prompt is empty")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise BadRequest("the prompt is not UTF-8 text") from None
    declared = is_json(headers)
    if declared or body[0] == 0x7B:  # {
        raw = _declared_json(body, "prompt") if declared else _json_or_text(body)
        if isinstance(raw, str):
            text = raw
        elif raw is not _TEXT and (declared or (isinstance(raw, dict) and isinstance(raw.get("prompt"), str))):
            return _shaped_prompt(body, raw)
    if not text.strip():
        raise BadRequest("the prompt is empty")
    return PromptBody(prompt=text)


def _shaped_prompt(body: bytes, raw: Any) -> PromptBody:
    """The prompt in the JSON `body`, which holds `raw`.

    Raises:
        BadRequest: as `decode_prompt`.
    """
    check_depth_of(body, raw)
    try:
        decoded = _prompt_decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the prompt's JSON has another shape: {error}") from None
    if not decoded.prompt and not decoded.attachments:
        raise BadRequest("the prompt is empty: give it a text, or an attachment")
    for attachment in decoded.attachments:
        _check_base64(attachment)
    return decoded


def _check_base64(attachment: Attachment) -> None:
    try:
        binascii.a2b_base64(attachment.content, strict_mode=True)
    except ValueError:  # also what is not ASCII
        raise BadRequest(f"the content of the attachment {attachment.filename[:80]!r} is not base64") from None


def encode_prompt(body: PromptBody) -> tuple[bytes, dict[str, str]]:
    """Body and headers of `body`: plain text where that says it all."""
    plain = not body.metadata and not body.attachments and not body.prompt.startswith("{")
    if plain:
        return body.prompt.encode(), {}
    return msgspec.json.encode(body), {"Content-Type": "application/json"}


def decode_event(body: bytes, headers: Mapping[str, str] | None = None) -> Any:
    """The event in `body`: any JSON value, or text that is not JSON. A byte order mark ahead of it is dropped.

    Raises:
        BadRequest: the body is not UTF-8, nested too deeply, or declared as JSON and cut.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK)
    if _head(body) in _JSON_HEADS:
        value = _declared_json(body, "event") if headers and is_json(headers) else _json_or_text(body)
        if value is not _TEXT:
            check_depth_of(body, value)
            return value
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise BadRequest("the event is not UTF-8 text") from None


def _head(body: bytes) -> int:
    """The first byte of `body` that is no white space, or 0."""
    head = body[:1] if body[:1] not in _JSON_SPACE else body.lstrip(_JSON_SPACE)[:1]
    return head[0] if head else 0


def _json_or_text(body: bytes) -> Any:
    """The JSON value in `body`, or `_TEXT` if it is none.

    Raises:
        BadRequest: it is nested too deeply to be read.
    """
    try:
        return _json_of(body)
    except msgspec.DecodeError:
        return _TEXT


def _declared_json(body: bytes, what: str) -> Any:
    """The JSON value in a `body` that is declared as JSON, or `_TEXT` for a body that does not even begin as JSON text, array or
    object: some programs declare all that they send.

    Raises:
        BadRequest: it begins so and is no JSON.
    """
    value = _json_or_text(body)
    if value is _TEXT and _head(body) in b'{["':
        raise BadRequest(f"the {what} is declared as JSON but is not JSON")
    return value


def _json_of(body: bytes) -> Any:
    """The JSON value in `body`.

    Raises:
        msgspec.DecodeError: it is none.
        BadRequest: it is nested too deeply to be read.
    """
    try:
        return _json_decoder.decode(body)
    except RecursionError:
        raise BadRequest(_TOO_DEEP) from None


def check_depth_of(body: bytes, value: Any) -> None:
    """As `check_depth`, for a value that the JSON `body` holds: cheap, because most bodies have too few brackets to be deep."""
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        check_depth(value)


def check_depth(value: Any) -> None:
    """Refuse a JSON value nested deeper than `MAX_DEPTH`: every process that passes it on must be able to encode it, on any
    stack.

    Raises:
        BadRequest: it is.
    """
    level = [value] if _nests(value) else []
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node) if _nests(child)]
    if level:
        raise BadRequest(_TOO_DEEP)


def _nests(value: Any) -> bool:
    return isinstance(value, dict | list)


def decode_mail(
    lane: Lane, seq: int, body: bytes, headers: Mapping[str, str], *, root: str, stored_at: float | None = None
) -> Mail:
    """A stored message as `Mail`. Never raises: if something is wrong with it, `problem` says what. `stored_at` is when the
    server stored it (seconds since the epoch); by default its headers say.

    On open lanes the sender headers are ignored: a stranger can neither pose as an agent nor spoil its watermark.
    """
    found = headers.get
    fields: dict[str, Any] = {}
    prompt = lane.kind == "prompt"
    given, unread = carried_in(headers, prompt=prompt, trusted=lane.trusted, stored_at=stored_at)
    if given is not NOTHING_CARRIED:
        fields = {name: getattr(given, name) for name in given.__struct_fields__}
    if lane.trusted:
        fields.update(
            sender=found(FROM),
            sender_life=found(FROM_LIFE),
            origin=found(ORIGIN),
            tag=found(TAG),
            schedule=found("Nats-Scheduler"),
        )
    msg_id = found(MSG_ID) or None  # for the server, too, an empty one is none
    try:
        if prompt:
            # The addresses first: the caller of a malformed prompt can then still be told.
            if REPLY_TO in headers:
                fields["reply_to"] = reply_subject(headers[REPLY_TO], root)
            if STREAM_TO in headers:
                fields["stream_to"] = reply_subject(headers[STREAM_TO], root)
        if msg_id is not None:
            message_id(msg_id)
        if unread is not None:
            raise BadRequest(unread)
        if prompt:
            if KEY_DIGEST in headers or KEY in headers:
                fields["key"] = digest_in(headers)
            fields["prompt"] = decode_prompt(body, headers)
        else:
            fields["event"] = decode_event(body, headers)
    except BadRequest as error:
        fields["problem"] = error.message
    stored = found(TIME_STAMP)
    return Mail(lane=lane.name, seq=seq, for_life=found(FOR), msg_id=msg_id, stored=stored, **fields)


class Withdrawal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a message in the lane of answers by which an agent withdraws a request that it has sent. A receiver of an older
    build drops it like an answer that nobody waits for."""

    withdraws: str
    """The request's origin."""
    why: ErrorBody | None = None
    """How the request ended on whose behalf it was sent."""


def withdrawal_in(mail: Mail) -> Withdrawal | None:
    """The withdrawal in `mail`; None if it is something else."""
    if mail.lane != "peer-answer" or mail.sender is None or not isinstance(mail.event, dict) or "withdraws" not in mail.event:
        return None
    try:
        return msgspec.convert(mail.event, Withdrawal)
    except msgspec.ValidationError:
        return None


# --- outcomes -----------------------------------------------------------------------------------------------------
class ErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error on the wire."""

    code: str
    message: str = ""
    details: dict[str, Any] = {}

    @staticmethod
    def of(error: MeshError) -> ErrorBody:
        return ErrorBody(code=error.code, message=error.message, details=error.details)

    def exception(self) -> MeshError:
        """The exception that this error stands for."""
        return error_for(self.code, self.message, self.details)


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a request ended: an answer (`ok`) or an error. One per ref, for ever the same."""

    agent: str
    ref: str
    ok: bool
    v: int = VERSION
    text: str | None = None
    usage: dict[str, Any] | None = None
    duration_ms: int | None = None
    session_id: str | None = None
    error: ErrorBody | None = None
    turn: int | None = None
    node: str | None = None
    msg_id: str | None = None
    """Which message it answers: the first 256 characters of that one's `Nats-Msg-Id`, if it had one."""
    stored: str | None = None
    """When the server stored that message, in its own words (RFC 3339). None: an older build has written this outcome."""
    tools: Counts = {}
    """The tools that ran, and how often each ended in which way: `ok`, `interrupted` (it has no result and may have been done),
    or a word for what went wrong."""

    def unwrap(self) -> str:
        """The answer's text.

        Raises:
            MeshError: the request ended with an error; its class follows the code.
        """
        if not self.ok:
            raise (self.error or ErrorBody(code="error")).exception()
        return self.text or ""


_encoder = msgspec.json.Encoder()
_outcome_decoder = msgspec.json.Decoder(Outcome)


def encode(value: Any) -> bytes:
    """JSON of a wire value."""
    return _encoder.encode(value)


def encode_reply(body: Mapping[str, Any]) -> bytes:
    """JSON of a reply to a control request: `body` and the protocol's version."""
    return _encoder.encode({"v": VERSION, **body})


def encode_failure(error: MeshError) -> bytes:
    """JSON of an error as the reply to a control request (docs/protocol.md#control-requests): `details` is always there."""
    return encode_reply(failure(error))


def failure(error: MeshError) -> dict[str, Any]:
    """The same as the members of a reply."""
    return {"error": {"code": error.code, "message": error.message, "details": error.details}}


def encode_outcome(outcome: Outcome) -> bytes:
    """JSON of an outcome. `v` is always written, although fields at their default are left out."""
    return b'{"v":1,' + _encoder.encode(outcome)[1:]


def decode_outcome(body: bytes) -> Outcome:
    """Raises msgspec.DecodeError when `body` is no outcome."""
    return _outcome_decoder.decode(body)


# Names that have stood here.
_MOVED = {
    "Activities": "agentmesh.control_values",
    "Activity": "agentmesh.control_values",
    "Adjustment": "agentmesh.control_values",
    "AgentStatus": "agentmesh.registry_values",
    "By": "agentmesh.registry_values",
    "Configuration": "agentmesh.control_values",
    "ControlRequest": "agentmesh.control_values",
    "MAX_SHOWN": "agentmesh.control_values",
    "NodeLease": "agentmesh.registry_values",
    "NodeStats": "agentmesh.control_values",
    "Placement": "agentmesh.registry_values",
    "Probe": "agentmesh.control_values",
    "Restart": "agentmesh.registry_values",
    "RestartPolicy": "agentmesh.registry_values",
    "Spec": "agentmesh.registry_values",
    "Status": "agentmesh.control_values",
    "SupervisorLease": "agentmesh.registry_values",
    "encode_spec": "agentmesh.registry_values",
    "parent_sign": "agentmesh.registry_values",
    "ref_of": "agentmesh.control_values",
    "unknown_fields": "agentmesh.registry_values",
}
if not TYPE_CHECKING:  # a type checker knows the present ones
    __getattr__ = attributes(__name__, _MOVED)
