"""How mail ends: its outcome is told, and what cannot be dealt with becomes a dead letter (`edge/results.py` stores outcomes).

An owner does it for its agent (`owner/effect_handlers.py`), the leading supervisor for mail that no agent will ever take
(`supervisor/unclaimed_mail.py`).
"""

from __future__ import annotations

from agentmesh import wire
from agentmesh.edge.publish import store
from agentmesh.edge.read import get_next
from agentmesh.edge.transport import Headers, Transport
from agentmesh.headers import CONTENT_TYPE, content_type_in, is_name, legible, trace_in
from agentmesh.keys import KEY, KEY_DIGEST, stored_digest
from agentmesh.records import Bury, Resolve, SendMail
from agentmesh.registry_values import Spec
from agentmesh.subjects import Subjects

REASON = "Mesh-Reason"
"""Header of a dead letter: the code of the error for which it is one."""


async def send_outcome(t: Transport, effect: Resolve) -> None:
    """Send the outcome to the caller, if it waits on a subject.

    Raises:
        Disconnected: there is no connection.
    """
    if effect.reply_to is not None:
        await t.publish(effect.reply_to, wire.encode_outcome(effect.outcome))


async def send_answer(
    t: Transport, subjects: Subjects, effect: SendMail, spec: Spec | None, *, sender: tuple[str, str], origin: str, nonce: str
) -> None:
    """Send the outcome of its request to the agent that has asked, unless that agent's life is over.

    Args:
        spec: that agent's.
        sender: the agent that was asked, and its incarnation.

    Raises:
        MailboxFull, TooLarge, Unavailable, Uncertain: as `store`.
    """
    assert effect.outcome is not None, "an answer is an outcome"
    if spec is None or spec.status == "stopped" or (effect.life is not None and spec.incarnation != effect.life):
        return
    agent, life = sender
    headers = {wire.FROM: agent, wire.FROM_LIFE: life, wire.ORIGIN: origin, wire.FOR: spec.incarnation, **effect.trace}
    if effect.tag is not None:
        headers[wire.TAG] = effect.tag
    msg_id = f"{effect.to}.{agent}.{origin}.{nonce}"
    await store(t, subjects.lane(effect.lane, effect.to), wire.encode_outcome(effect.outcome), headers=headers, msg_id=msg_id)


async def bury(t: Transport, subjects: Subjects, agent: str, effect: Bury, *, origin: str, nonce: str) -> None:
    """Copy the message from its lane to the agent's dead letters, with the reason. `nonce`: the id of the record that says so.

    Raises:
        TooLarge, Unavailable, Uncertain: as `store`.
    """
    body, headers = (effect.text or "").encode(), {}
    if effect.seq:
        stream = subjects.stream("timer" if effect.lane == "due" else "mail")
        found = await get_next(t, stream, subjects.lane(effect.lane, agent), effect.seq)
        if found is not None and found.seq == effect.seq:
            body = found.data
            headers = _kept(found.headers)
    headers.update(effect.trace)
    headers[REASON] = effect.reason.code
    headers["Mesh-Reason-Text"] = legible(" ".join(effect.reason.message.split())[:500])
    headers["Mesh-Lane"] = effect.lane
    headers["Mesh-Ref"] = str(effect.seq)
    await store(t, subjects.dead(agent), body, headers=headers, msg_id=f"{agent}.dead.{origin}.{nonce}")


def _kept(headers: Headers) -> dict[str, str]:
    """The headers of a message that its dead letter keeps, as clients of every language can read them."""
    kept = {name: legible(value) for name, value in headers.items() if name.startswith("Mesh-") and is_name(name)}
    if kept.pop(KEY, None) is not None and (digest := stored_digest(headers)):
        kept[KEY_DIGEST] = digest
    kept.update(trace_in(headers))
    if (declared := content_type_in(headers)) is not None:
        kept[CONTENT_TYPE] = legible(declared)
    return kept
