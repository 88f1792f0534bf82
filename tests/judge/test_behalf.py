"""The judges of whose requests a run's turns were notice what is wrong."""

from __future__ import annotations

from msgspec import structs

from agentmesh import wire
from agentmesh.identity import Party, told
from agentmesh.keys import KEY_DIGEST, digest_of
from agentmesh.ledger_entries import TurnInfo
from agentmesh.records import Record
from judge.behalf import let_in, misattributed, of_users
from judge.evidence import OTHERS, OWN_POLL, Call, Evidence, Letter, Operation

ANN = Party(kind="user", name="ann", account="CALLERS")
KEY = "a key of sixteen or more"
DIGEST = {KEY_DIGEST: digest_of(KEY)}
ASKED = Operation("c0", "user wait", "a", "L1", 0.0, ref="5", user="ann", key=KEY)
LETTERS = (
    Letter(5, "peer-inbox", "a", "wait L1 b c", "L1", DIGEST),
    Letter(6, "peer-inbox", "b", "wait L1@2 c", "L1@2", {wire.FROM: "a"}),
    Letter(7, "peer-inbox", "c", "wait L1@1", "L1@1", {wire.FROM: "b"}),
    Letter(8, "inbox", "a", "add L2", "L2", {}),
)
AGENTS = (ANN, Party(kind="agent", name="a"), Party(kind="agent", name="b"))


def evidence(*seen: tuple[str, str, str], **more: object) -> Evidence:
    calls = [Call(agent, ref, "n1", 0.0, chain) for agent, ref, chain in seen]
    return structs.replace(Evidence([ASKED], LETTERS, calls=calls), **more)


def test_each_turn_is_for_the_user_from_whom_its_request_has_come() -> None:
    right = [("a", "5", told(AGENTS[:1])), ("b", "6", told(AGENTS[:2])), ("c", "7", told(AGENTS)), ("a", "8", "unverified")]
    assert list(misattributed(evidence(*right))) == []
    assert of_users(evidence(*right)) == {"turns for users": 3, "refused for want of a key": 0}
    for index, (agent, ref, chain) in enumerate(right):
        for other in ("user ben of CALLERS", "unverified -> agent b", ""):
            wrong = [*right[:index], (agent, ref, other), *right[index + 1 :]]
            (found,) = misattributed(evidence(*wrong))
            assert f"{agent} {ref} " in found and chain in found


def test_a_record_says_the_same_and_the_mail_has_the_key() -> None:
    info = TurnInfo(number=1, ref="7", started=0.0, ended=1.0, node="n1", generation=1, chain=AGENTS[:2])
    record = Record(kind="turn", id="r", at=1.0, incarnation="l", epoch=1, generation=1, node="n1", boot="b", turn=info)
    assert len(list(misattributed(evidence(journals={"c": [(1, record)]})))) == 1
    assert len(list(misattributed(evidence(letters=[structs.replace(LETTERS[0], headers={})])))) == 1


def test_who_has_not_the_key_is_turned_down_and_who_has_it_is_not() -> None:
    def said(kind: str, error: str | None) -> int:
        operation = Operation("c1", kind, "a", "L1", 1.0, 2.0, error=error)
        return len(list(let_in(evidence(operations=[ASKED, operation]))))

    for kind in OTHERS:
        assert [said(kind, error) for error in (None, "not_permitted", "not_found", "unanswered")] == [1, 0, 0, 0]
    assert [said(OWN_POLL, error) for error in (None, "not_permitted", "not_found")] == [0, 1, 0]
