"""The words of model servers."""

from __future__ import annotations

import pytest

from agentmesh_node.backends.reasons import again_after, by_words, message_in, plainly, seconds


@pytest.mark.case(405)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prompt is too long: 300000 tokens > 200000 maximum", "too_long"),
        ("request (9124 tokens) exceeds the available context size (8192 tokens), try increasing it", "too_long"),
        ("exceed_context_size_error", "too_long"),
        ("litellm.ContextWindowExceededError: OpenAIException - This model's maximum context length is 8192 tokens.", "too_long"),
        ("Your input exceeds the context window of this model. Please adjust your input and try again.", "too_long"),
        ("input length and `max_tokens` exceed context limit: 1 + 2 > 3: context_length_exceeded", "too_long"),
        ("Input is too long for requested model.", "too_long"),
        ("Output blocked by content filtering policy", "refused"),
        ("litellm.ContentPolicyViolationError: The response was filtered", "refused"),
        ("The response was filtered due to the prompt triggering Azure OpenAI's content management policy.", "refused"),
        ("Your request was rejected as a result of our safety system.", "refused"),
        ("Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade.", "spend_limit"),
        ("You exceeded your current quota, please check your plan and billing details.", "spend_limit"),
        ("Budget has been exceeded! Current cost: 0.21, Max budget: 0.2", "spend_limit"),
        ("Insufficient credits. Add more using https://openrouter.ai/credits", "spend_limit"),
        ("messages.0.content.0.text.text: Field required", None),
        ("max_tokens exceeds the budget of thinking", None),
        ("metadata.user_id: String is too long", None),
        ("Rate limit reached: too many tokens per minute", None),
        ("tools.0.name: String should have at most 128 characters", None),
    ],
)
def test_what_ends_a_turn_for_good_is_found_whatever_the_wording(text: str, reason: str | None) -> None:
    assert by_words(text) == reason


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("Please try again in 20ms.", 0.02),
        ("No deployments available for selected model, Try again in 5 seconds.", 5.0),
        ("try again in 1.5s", 1.5),
        ("Please retry after 2 minutes", 120.0),
        ("Try again in 1 hour", 3600.0),
        ("try again in 3 s", 3.0),
        ("try again later", None),
        ("try again in 5 apples", None),
    ],
)
def test_waits_are_found_in_words(text: str, after: float | None) -> None:
    assert again_after(text) == after


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "soon", None, [], ""])
def test_seconds_are_seconds(value: object) -> None:
    assert seconds(value) is None
    assert seconds("1.5") == 1.5


def test_a_complaint_is_told_in_plain_words() -> None:
    body = '{"error": {"message": "{\\"error\\": {\\"message\\": \\"no\\"}}", "code": 400}}'
    assert plainly(f"unexpected status 400 Bad Request: {body}, url: u") == "unexpected status 400 Bad Request: no, url: u"
    assert plainly("no JSON") == "no JSON"
    assert "{" not in plainly('bad: {"x": 1}')
    assert "{" not in plainly('bad: {"x": ')
    assert plainly("{}") != ""


@pytest.mark.parametrize("body", [None, 5, [], {}, {"error": {}}, {"error": {"message": 5}}, {"message": None}])
def test_a_body_of_another_form_has_no_message(body: object) -> None:
    assert message_in(body) is None
