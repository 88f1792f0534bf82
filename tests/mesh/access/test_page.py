"""The lists of docs/security.md are those of the table: `python tests/mesh/access/test_page.py` writes them there."""

from __future__ import annotations

from pathlib import Path

from agentmesh.access.roles import ROLES, USER_INFO, lists
from agentmesh.subjects import Subjects

PAGE = Path(__file__).parents[3] / "docs" / "security.md"
BEGIN = "<!-- roles: made by tests/mesh/access/test_page.py -->\n"
END = "<!-- end of roles -->\n"


def general(subject: str) -> str:
    """A subject of the mesh `zzroot`, for any root."""
    return subject.replace("ZZROOT", "M").replace("zzroot", "R")


def table() -> str:
    """The lists of all roles."""
    rows = ["| role | publish | subscribe |", "|---|---|---|"]
    for role in ROLES:
        found = lists(role, Subjects("zzroot"), user="u", agents=("team-a.", "clerk"), ops=("status",))
        cells = [
            " ".join(f"`{general(subject)}`" for subject in allowed if subject not in (USER_INFO, "_INBOX.u.>"))
            for allowed in (found.publish_allow, found.subscribe_allow)
        ]
        rows.append(f"| {role} | {cells[0]} | {cells[1] or '-'} |")
    return "\n".join(rows) + "\n"


def written(page: str) -> str:
    """The page with the lists of the table."""
    before, _, rest = page.partition(BEGIN)
    _, _, behind = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{behind}"


def test_the_page_has_the_lists_of_the_table() -> None:
    page = PAGE.read_text()
    assert BEGIN in page and END in page
    assert page == written(page)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
