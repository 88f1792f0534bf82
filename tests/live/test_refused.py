"""Every verb where it cannot work ends at once, with the code and the cause of docs/operations.md#what-ends-a-command-at-once.

What "at once" means is no number of seconds here: the verbs have time-outs of 600 s, their requests of 5 s and more, and each
process is waited for no longer than that may take on a machine that does other things too.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentmesh_client
from agentmesh.edge.registry import Registry
from agentmesh.errors import NotPermitted
from agentmesh.registry_values import Spec
from agentmesh.subjects import spec_key
from agentmesh.wire import encode
from agentmesh_client.cli import exits
from agentmesh_client.cli import main as cli
from live.mesh import AGENTS
from live.refused import CONDITIONS, HOSTING, ROOT, VERBS, Place, command, operator, place
from support import eventually, run

pytestmark = [pytest.mark.processes, pytest.mark.case(301)]

BOUND_S = 60.0
"""Longest wait for a verb: a tenth of what its own time-out is."""
FOR_USERS = re.compile(r"RequestTimeout|\(\d{5}\)|mesh: mesh:|eof_received|Traceback|\d{10,}")
"""What no message has: internals, and JetStream's numbers."""


@pytest.fixture(scope="module", params=[False, True], ids=["tcp", "tls"])
def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("place"), tls=request.param) as made:

        async def main() -> None:
            async with operator(made):
                pass

        run(main())
        yield made


def said_by(verb: str, there: Place, condition: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """The exit code and the last words of a verb of the client, run in this process on a thread of its own."""
    for name, value in there.variables(condition).items():
        if name.startswith(("MESH_", "SSL_")):
            monkeypatch.setenv(name, value)
    codes: list[int] = []
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        thread = threading.Thread(target=lambda: codes.append(cli.main(VERBS[verb])), daemon=True)
        thread.start()
        thread.join(BOUND_S)
    assert codes, f"{verb} does not end with {condition}: {errors.getvalue()}"
    return codes[0], errors.getvalue().strip()


def test_no_verb_is_forgotten() -> None:
    assert {name.split()[0] for name in VERBS} == {*cli.VERBS, *HOSTING} - {"completion", "access"}  # which ask no server


@pytest.mark.case(302)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_verb_ends_at_once_by_the_true_cause(there: Place, condition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, words = {
        "wrong password": (exits.NOT_PERMITTED, r"refuses the credentials of user 'op'"),
        "no permission": (exits.NOT_PERMITTED, r"does not permit user 'Guest' to (publish|subscribe) to [$\w]"),
        "no server": (exits.UNREACHABLE, r"no NATS server answers at (nats|tls)://127\.0\.0\.1:\d+ \(nobody listens there\)"),
        "wrong root": (exits.UNREACHABLE, r"KV_other-registry|OTHER_DEAD"),
    }[condition]
    for verb in VERBS:
        if verb in HOSTING or (verb == "doctor" and condition == "wrong root"):  # which is what doctor examines
            continue
        found, said = said_by(verb, there, condition, monkeypatch)
        assert found == code, f"{verb}: {said}"
        assert re.search(words, said), f"{verb}: {said}"
        assert not FOR_USERS.search(said.replace("_INBOX", "")), f"{verb}: {said}"


@pytest.mark.case(302)
@pytest.mark.case(303)
@pytest.mark.parametrize("verb", HOSTING)
@pytest.mark.parametrize("condition", CONDITIONS[:3])
def test_a_hosting_process_does_too(there: Place, verb: str, condition: str) -> None:
    said = command(there, verb, condition, timeout=BOUND_S)
    assert said.code == (5 if condition == "no server" else 6), said.text
    assert len(said.text.splitlines()) == 1, said.text
    assert not FOR_USERS.search(said.text), said.text


@pytest.mark.case(301)
@pytest.mark.parametrize("subscribe", ['deny: ">"', 'allow: ["_INBOX.>"]'], ids=["nothing", "only replies"])
def test_a_user_without_rights_is_told_in_one_line(tmp_path: Path, subscribe: str) -> None:
    users = NARROW.format(rule=f'publish: {{ deny: ">" }}, subscribe: {{ {subscribe} }}')
    with place(tmp_path, tls=False, users=users) as there:

        async def main() -> None:
            async with operator(there):
                pass

        run(main())
        for verb in ("ps", "ask", "tell", "status", "events", "doctor", *HOSTING):
            said = command(there, verb, "narrow", timeout=BOUND_S)
            assert said.code == 6, f"{verb}: {said.text}"
            assert len(said.text.splitlines()) == 1, f"{verb}: {said.text}"


@pytest.mark.case(302)
def test_a_server_that_comes_is_waited_for_where_that_is_asked_for(tmp_path: Path) -> None:
    with place(tmp_path, tls=False) as there:
        there.server.stop()
        process = subprocess.Popen(
            [sys.executable, "-m", "agentmesh_client.cli.main", "ps", "--wait", "600"],
            env=there.variables(""), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.0)
            there.server.start()
            _, said = process.communicate(timeout=BOUND_S)
            assert process.returncode == 5
            assert "KV_mesh-registry" in said, "it has found a server, and no mesh on it"
        finally:
            process.kill()


# --- a part of what is needed -------------------------------------------------------------------------------------
NARROW = """authorization {{ users: [
  {{ user: "op", password: "right" }}
  {{ user: "Narrow", password: "right", permissions: {{ {rule} }} }}
] }}"""


@pytest.mark.case(303)
@pytest.mark.parametrize(
    ("verb", "rule", "words"),
    [
        ("node", 'subscribe: { deny: ["mesh.ask.>"] }', "to subscribe to mesh.ask.>"),
        ("node", 'subscribe: { deny: ["mesh.node.*"] }', "to subscribe to mesh.node.n1"),
        ("node", 'publish: { deny: ["$KV.mesh-registry.nodes.*"] }', "to publish to $KV.mesh-registry.nodes.n1"),
        ("supervisor", 'subscribe: { deny: ["mesh.ask.>"] }', "to subscribe to mesh.ask.>"),
        ("supervisor", 'subscribe: { deny: ["mesh.registry.>"] }', "to subscribe to mesh.registry."),
        ("supervisor", 'subscribe: { deny: ["_INBOX.>"] }', "to subscribe to _INBOX."),
    ],
)
def test_a_process_that_lacks_a_right_ends_its_start_and_names_it(tmp_path: Path, verb: str, rule: str, words: str) -> None:
    with place(tmp_path, tls=False, users=NARROW.format(rule=rule)) as there:

        async def main() -> None:
            async with operator(there):
                pass

        run(main())
        said = command(there, verb, "narrow", timeout=BOUND_S)
    assert said.code == 6, said.text
    assert f"does not permit user 'Narrow' {words}" in said.text


@pytest.mark.case(303)
def test_a_right_that_is_taken_away_shows_in_readiness_and_in_mesh_events(tmp_path: Path) -> None:
    allowed = NARROW.format(rule='subscribe: { deny: ["nothing"] }')

    async def main(there: Place) -> None:
        async with operator(there):
            await until_refused(there)

    async def until_refused(there: Place) -> None:
        log = tmp_path / "node.log"
        env = there.variables("narrow")
        node = _start(log, env, "node", "--agents", str(AGENTS), "--id", "n1")
        events = _start(tmp_path / "events.log", env, "events")
        try:
            await eventually(lambda: "ready:" in log.read_text(), BOUND_S, "the node's ready line")
            await eventually(lambda: "waiting for events" in (tmp_path / "events.log").read_text(), BOUND_S, "mesh events")
            there.server._extra = NARROW.format(rule='subscribe: { deny: ["mesh.ask.>", "mesh.event.>"] }')
            await asyncio.to_thread(there.server.restart)
            await eventually(lambda: events.poll() is not None, BOUND_S, "the end of mesh events")
            assert events.returncode == 6
            assert "user 'Narrow' to subscribe to mesh.event._supervisor.*" in (tmp_path / "events.log").read_text()
            await eventually(lambda: "to subscribe to mesh.ask.>" in log.read_text(), BOUND_S, "the node's complaint")
            assert node.poll() is None, "it goes on, for its operator may give it back"
        finally:
            for process in (node, events):
                process.send_signal(signal.SIGKILL)
                process.wait()

    with place(tmp_path, tls=False, users=allowed) as there:
        run(main(there), 110)


def test_an_ask_that_was_accepted_ends_when_its_callers_credentials_are_revoked(tmp_path: Path) -> None:
    async def main(there: Place) -> None:
        async with operator(there), agentmesh_client.connect(there.variables("narrow")["MESH_NATS_URL"], root=ROOT) as mesh:
            spec = Spec(kind="Puppet", incarnation="life", status="running")
            await Registry(mesh.transport, mesh.subjects).create(spec_key("a1"), encode(spec))
            accepted: list[str] = []
            asked = asyncio.create_task(mesh.ask_outcome("a1", "hello", timeout=600, on_accepted=accepted.append))
            await eventually(lambda: accepted, BOUND_S, "the ref")
            there.server._extra = NARROW.format(rule='subscribe: { deny: ["nothing"] }').replace(
                '"Narrow", password: "right"', '"Narrow", password: "another"'
            )
            await asyncio.to_thread(there.server.restart)
            with pytest.raises(
                NotPermitted, match=f"refuses the credentials of user 'Narrow'.*mesh poll a1 {accepted[0]}"
            ) as caught:
                async with asyncio.timeout(BOUND_S):
                    await asked
            assert caught.value.details["ref"] == accepted[0]

    with place(tmp_path, tls=False, users=NARROW.format(rule='subscribe: { deny: ["nothing"] }')) as there:
        run(main(there), 110)


def _start(log: Path, env: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "agentmesh_client.cli.main", *arguments],
            env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
