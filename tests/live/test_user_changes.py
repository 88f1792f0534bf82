"""Users are added, removed and given new passwords by reloads, under asks, while a node and a server are killed.

`make user-changes` makes five hundred changes and prints how long users were cut off or away; here some forty are made.
"""

from __future__ import annotations

import pytest

from live.user_changes import played
from support import WHOLE_S

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.case(656), pytest.mark.timeout(WHOLE_S + 60)]


@pytest.mark.parametrize("signed", [False, True], ids=["by password", "signed"])
@pytest.mark.parametrize("servers", [1, 3])
def test_no_ask_of_an_allowed_user_is_lost_or_doubled_and_a_removed_one_is_cut_off_by_the_reload(
    servers: int, signed: bool
) -> None:
    made = played(servers, changes=40, seed=servers, timeout=WHOLE_S, signed=signed)
    print(made.report())
    assert sum(made.done.values()) == 40 and set(made.done) == {"add", "remove", "rotate"}
    assert len(made.killed) == 2 and made.cut and made.back
