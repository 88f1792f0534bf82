"""The list of cases and the tests agree, and the comparison would notice if they did not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cases import PENDING, SEMANTICS, TESTS, faults, numbered, pending, shown


def test_the_cases_of_the_page_and_the_tests_agree() -> None:
    assert faults(numbered(SEMANTICS.read_text()), shown(TESTS), pending(PENDING.read_text())) == []


def test_no_number_is_missing_or_used_twice() -> None:
    text = SEMANTICS.read_text()
    cases = numbered(text)
    lines = [line for line in text.splitlines() if re.match(r"- \*\*\d", line)]
    assert lines == [f"- **{n}** {cases[n]}" for n in sorted(cases)]
    assert set(cases) == {
        *range(1, 111),
        *range(200, 230),
        *range(231, 237),
        *range(241, 247),
        *range(251, 257),
        *range(260, 268),
        *range(270, 274),
        *range(280, 287),
        *range(290, 294),
        *range(300, 304),
        *range(310, 321),
        *range(330, 336),
        *range(340, 350),
        *range(350, 360),
        *range(400, 410),
        *range(420, 430),
        *range(440, 452),
        *range(380, 388),
        *range(460, 465),
        *range(470, 476),
        *range(480, 485),
        *range(500, 506),
        *range(510, 515),
        *range(520, 523),
        *range(535, 539),
        *range(540, 546),
        *range(550, 559),
        *range(560, 574),
        *range(580, 587),
        *range(590, 596),
        *range(600, 607),
        610,
        611,
        *range(613, 618),
        *range(620, 628),
        *range(635, 638),
        *range(650, 664),
        *range(760, 770),
        *range(690, 695),
        *range(670, 676),
        *range(680, 686),
        *range(700, 708),
        *range(710, 725),
        *range(730, 736),
        *range(740, 746),
        *range(850, 854),
    }


def test_marks_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "pytestmark = pytest.mark.case(1)\n"
        "@pytest.mark.case(2)\n@pytest.mark.case(3)\ndef test_a(): pass\n"
        "@pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.case(4))])\ndef test_b(x): pass\n"
        "class TestC:\n    @pytest.mark.case(5)\n    def test_c(self): pass\n"
    )
    found = {1: "test_some.py", 2: "::test_a", 3: "::test_a", 4: "::test_b", 5: "::TestC"}
    assert {number: tests[0].removeprefix("test_some.py") or tests[0] for number, tests in shown(tmp_path).items()} == found


def test_what_is_a_fault() -> None:
    cases = {1: "shown", 2: "pending", 3: "forgotten", 4: "both"}
    wrong = faults(cases, {1: ["t"], 4: ["t"], 9: ["t"]}, {2: "later", 4: "later", 8: "later"})
    assert [int(line.split()[0]) for line in wrong] == [3, 4, 9, 8]


@pytest.mark.parametrize("line", ["12", "x because", "because 12"])
def test_a_pending_case_needs_a_reason(line: str) -> None:
    with pytest.raises(ValueError, match="cases_pending"):
        pending(f"# comment\n{line}\n")
