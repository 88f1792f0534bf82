"""How an owner performs the effects of its agent's records: the mail that it sends, and its timers."""

from __future__ import annotations

import pytest

from agentmesh.headers import trace_in
from agentmesh.records import Effect, Open, SendMail, SetTimer
from agentmesh.trace.context import context_in, is_sampled, send_span_id, trace_id_of
from agentmesh.wire import Outcome, PromptBody
from agentmesh_node.owner.effect_handlers import EffectHandlers
from node.simulated import SimulatedNode, simulate

TRACE, ABOVE = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
MADE_IN = {"traceparent": f"00-{TRACE}-{ABOVE}-01", "tracestate": "mesh=3-990,a=1", "baggage": "user=7"}
PROMPT = SendMail(to="peer", lane="peer-inbox", prompt=PromptBody(prompt="p"), trace=MADE_IN)
EVENT = SendMail(to="peer", lane="peer-notify", event="e", trace=MADE_IN)
ANSWER = SendMail(to="peer", lane="peer-notify", tag="t", outcome=Outcome(agent="coder", ref="1", ok=True), trace=MADE_IN)
WITHDRAWAL = SendMail(to="peer", lane="peer-answer", event={"withdraws": "1.5.0"}, trace=MADE_IN)


def sent(effect: Effect, subject: str, sampled: float | None) -> dict[str, str]:
    """The trace headers of what is sent for `effect`, whose origin is 1.9.0."""
    found: dict[str, str] = {}

    async def story(node: SimulatedNode) -> None:
        await node.spec("peer")
        handlers = EffectHandlers(
            node.services,
            "coder",
            "life-1",
            emit=lambda kind, fields: None,
            end_stream=lambda effect: None,
            is_gone=_never,
            sampled=sampled,
        )
        await handlers.perform("1.9.0", Open(effect, "nonce", 0.0))
        await node.until(lambda: node.stored(subject), "it is stored")
        found.update(trace_in(node.stored(subject)[-1].headers))

    simulate(story)
    return found


async def _never(ref: str) -> bool:
    return False


@pytest.mark.case(572)
@pytest.mark.parametrize(("effect", "subject"), [(PROMPT, "mesh.peer-inbox.peer"), (EVENT, "mesh.peer-notify.peer")])
def test_the_context_of_mail_names_the_span_in_which_it_is_sent(effect: SendMail, subject: str) -> None:
    assert sent(effect, subject, 1.0) == {**MADE_IN, "traceparent": f"00-{TRACE}-{send_span_id('coder', '1.9.0')}-01"}
    assert sent(effect, subject, None) == MADE_IN, "where records tell no spans, a context is handed on as it is"


@pytest.mark.case(572)
@pytest.mark.parametrize(("effect", "subject"), [(ANSWER, "mesh.peer-notify.peer"), (WITHDRAWAL, "mesh.peer-answer.peer")])
def test_answers_and_withdrawals_belong_to_their_request(effect: SendMail, subject: str) -> None:
    assert sent(effect, subject, 1.0) == MADE_IN


@pytest.mark.case(572)
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_mail_that_no_turn_and_no_event_has_made_begins_a_trace(ratio: float) -> None:
    effect = SendMail(to="peer", lane="peer-notify", event="e")
    context = context_in(sent(effect, "mesh.peer-notify.peer", ratio))
    assert context is not None and context.span_id == send_span_id("coder", "1.9.0")
    assert context.trace_id == trace_id_of(None, "coder", "life-1", "1.9.0", None)
    assert context.sampled is is_sampled(context.trace_id, ratio) is (ratio == 1.0)


@pytest.mark.case(572)
def test_a_timers_ticks_bear_the_context_of_what_set_it() -> None:
    assert sent(SetTimer(id="t", due=1.0, event="e", trace=MADE_IN), "mesh.due.coder", 1.0) == MADE_IN
