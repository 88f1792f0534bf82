"""A request's key is random, and only its digest is stored (case 625)."""

from __future__ import annotations

import hashlib

import pytest

from agentmesh.errors import BadRequest, NotPermitted
from agentmesh.keys import KEY, KEY_DIGEST, LONGEST, SHORTEST, digest_in, digest_of, opens, refusal, shown_by, stored_digest
from agentmesh.subjects import LANES
from agentmesh.wire import decode_mail

GOOD = "0123456789abcdef"
DIGEST = hashlib.sha256(GOOD.encode()).hexdigest()


@pytest.mark.case(625)
def test_a_key_has_sixteen_to_a_hundred_and_twenty_eight_printable_characters() -> None:
    assert digest_of(GOOD) == DIGEST and len(digest_of("x" * LONGEST)) == 64
    for bad in ("", "x" * (SHORTEST - 1), "x" * (LONGEST + 1), "caf\u00e9" * 8, "a\tb" * 8, " " + GOOD, GOOD + " "):
        with pytest.raises(BadRequest):
            digest_of(bad)


@pytest.mark.case(625)
def test_mail_with_a_key_has_its_digest_and_a_digest_shows_no_key() -> None:
    for headers in ({KEY: GOOD}, {KEY_DIGEST: DIGEST}, {KEY: GOOD, KEY_DIGEST: "0" * 64}):
        assert digest_in(headers) == stored_digest(headers) == DIGEST
        for lane in ("inbox", "peer-inbox"):
            assert decode_mail(LANES[lane], 1, b"hello", headers, root="mesh").key == DIGEST
    assert decode_mail(LANES["inbox"], 1, b"hello", {}, root="mesh").key is None
    assert shown_by({KEY: GOOD}) == DIGEST and shown_by({KEY_DIGEST: DIGEST}) is None
    for bad in ({KEY: "short"}, {KEY_DIGEST: "short"}):
        mail = decode_mail(LANES["inbox"], 1, b"hello", bad, root="mesh")
        assert mail.problem is not None and mail.key is None
        assert not opens(stored_digest(bad), DIGEST), "what cannot be read opens to nobody"


@pytest.mark.case(625)
def test_who_has_not_got_the_key_is_told_so() -> None:
    assert opens(None, None) and opens(None, DIGEST) and opens(DIGEST, DIGEST)
    for given in (None, "", "0" * 64):
        assert not opens(DIGEST, given)
        error = refusal("17", given)
        assert isinstance(error, NotPermitted) and error.details == {"ref": "17"} and KEY in error.message
