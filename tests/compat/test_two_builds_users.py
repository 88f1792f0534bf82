"""How the judge of both builds takes what strangers did to requests with keys."""

from __future__ import annotations

from compat.two_builds.users import as_before_keys
from judge.evidence import OTHERS_CANCEL, OTHERS_POLL, Operation


def test_a_stranger_may_have_cancelled_what_was_asked_before_all_kept_keys_and_nothing_later() -> None:
    asked = [
        Operation("u", "user wait", "a1", label, began, user="ann", key="k" * 16) for label, began in (("L1", 1.0), ("L2", 9.0))
    ]
    tried = [Operation("s", kind, "a1", label, 9.5) for kind in (OTHERS_CANCEL, OTHERS_POLL) for label in ("L1", "L2")]
    found = as_before_keys([*asked, *tried], 5.0)
    assert found[:2] == asked
    assert [op.kind for op in found[2:]] == ["cancel", OTHERS_CANCEL, OTHERS_POLL, OTHERS_POLL]
