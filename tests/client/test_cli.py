"""The `mesh` command: what it prints, where, and with which exit code."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import importlib.metadata
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentmesh import errors, wire
from agentmesh.registry_values import NodeLease
from agentmesh.subjects import Subjects, node_key, spec_key
from agentmesh_client.cli import admin, exits, main, output
from agentmesh_client.cli.common import GlobalOptions
from client.fake_owner import World, place, world
from client.test_control import STATUS
from commands import PROGRAM, mesh_command
from support import Cluster, Server, eventually, run


class Shell:
    """Runs `mesh` as its users do."""

    def __init__(self, server: Server | Cluster, subjects: Subjects, directory: Path | None = None) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
        self.environ = {**clean, "MESH_NATS_URL": server.url, "MESH_ROOT": subjects.root, "COLUMNS": "200"}
        self._directory = directory

    @contextlib.asynccontextmanager
    async def started(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            *arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environ,
            cwd=self._directory,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    async def run(self, *arguments: str, stdin: str = "", expect: int = exits.OK) -> tuple[str, str]:
        """stdout and stderr of a command that must end with the code `expect`."""
        ended = await mesh_command(arguments, self.environ, cwd=self._directory, stdin=stdin)
        assert ended.returncode == expect, f"exit code {ended.returncode}: {ended.stdout} {ended.stderr}"
        return ended.stdout, ended.stderr

    async def json(self, *arguments: str, expect: int = exits.OK) -> Any:
        """What the command prints with `-o json`."""
        return json.loads((await self.run(*arguments, "-o", "json", expect=expect))[0])


@contextlib.asynccontextmanager
async def shell(server: Server, subjects: Subjects, agents: Sequence[str] = ("coder",)) -> AsyncIterator[tuple[World, Shell]]:
    async with world(server, subjects) as w:
        for agent in agents:
            await w.write_spec(agent)
        yield w, Shell(server, subjects)


def test_ask_prints_the_answer_alone(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with shell(server, subjects) as (w, sh), w.owner("coder") as owner:
            assert await sh.run("ask", "coder", "hello") == ("echo: hello\n", "")
            assert (await sh.run("ask", "coder", "-", stdin="from a pipe"))[0] == "echo: from a pipe\n"
            outcome = await sh.json("ask", "coder", "-x is text too", "--metadata", '{"user": 7}')
            assert outcome["v"] == 1
            assert (outcome["ok"], outcome["agent"], outcome["text"]) == (True, "coder", "echo: -x is text too")
            assert owner.mail[-1].prompt is not None
            assert owner.mail[-1].prompt.metadata == {"user": 7}

    run(scenario(), timeout=60)


def test_ask_says_what_a_long_silence_comes_from(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with shell(server, subjects) as (w, sh):
            async with sh.started("ask", "coder", "anybody?") as asking:
                assert asking.stderr is not None
                assert b"no node is live, so no agent runs; the prompt waits" in await asking.stderr.readline()
            await place(w.registry, "coder", "life1")
            owner = w.owner("coder")
            owner.go_on.clear()
            owner.replies["status"] = {**STATUS, "halted": True}
            async with owner, sh.started("ask", "coder", "hello") as asking:
                assert asking.stderr is not None
                assert b"coder is halted; the prompt waits until `mesh resume coder`" in await asking.stderr.readline()
                owner.go_on.set()
                out, err = await asking.communicate()
                assert (asking.returncode, out, err) == (exits.OK, b"echo: hello\n", b"")

    run(scenario(), timeout=60)


@pytest.mark.case(463)
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("store_lost", b"coder has failed (store_lost: why); the prompt is not answered unless the store is restored"),
        ("failed", b"coder has failed (failed: why); the prompt waits until `mesh resume coder`"),
    ],
)
def test_ask_says_that_its_agent_has_failed_meanwhile(server: Server, subjects: Subjects, code: str, told: bytes) -> None:
    async def scenario() -> None:
        async with shell(server, subjects) as (w, sh):
            await place(w.registry, "coder", "life1")
            owner = w.owner("coder")
            owner.go_on.clear()
            owner.replies["status"] = {**STATUS, "failed": {"code": code, "message": "why"}}
            async with owner, sh.started("ask", "coder", "hello") as asking:
                assert asking.stderr is not None
                assert told in await asking.stderr.readline()
                owner.go_on.set()
                await asking.communicate()

    run(scenario(), timeout=60)


def test_a_failed_task_exits_1_and_its_outcome_is_data(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        failing = errors.BackendError("no credit", details={"retry_after_s": 3})
        async with shell(server, subjects) as (w, sh), w.owner("coder", lambda _: failing):
            out, err = await sh.run("ask", "coder", "hello", expect=exits.FAILED)
            assert out == ""
            assert "backend_error: no credit" in err
            outcome = await sh.json("ask", "coder", "hello", expect=exits.FAILED)
            assert (outcome["ok"], outcome["error"]["details"]) == (False, {"retry_after_s": 3})
            polled = await sh.json("poll", "coder", outcome["ref"], expect=exits.FAILED)
            assert (polled["status"], polled["outcome"]) == ("completed", outcome)

    run(scenario(), timeout=60)


def test_tell_prints_a_ref_that_poll_takes(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with shell(server, subjects) as (w, sh), w.owner("coder") as owner:
            owner.go_on.clear()
            owner.replies["poll"] = {"status": "pending"}
            ref = (await sh.run("tell", "coder", "hello"))[0].strip()
            assert (await sh.run("poll", "coder", ref))[0] == "pending\n"
            assert await sh.json("poll", "coder", ref) == {"v": 1, "status": "pending"}
            owner.go_on.set()

            async def answered() -> bool:
                return (await sh.run("poll", "coder", ref))[0] == "echo: hello\n"

            await eventually(answered)

    run(scenario(), timeout=60)


@pytest.mark.case(463)
def test_tell_and_poll_and_an_ask_that_ends_soon_say_why_a_prompt_waits(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with shell(server, subjects) as (w, sh):
            nobody = (
                "mesh: no node is live, so no agent runs; the prompt waits until one is started (`mesh node`, or `mesh up`)\n"
            )
            ref, said = await sh.run("tell", "coder", "hello")
            assert said == nobody
            assert await sh.run("poll", "coder", ref.strip()) == ("pending\n", nobody)
            _, said = await sh.run("ask", "coder", "hello", "--timeout", "0.5", expect=exits.TIMED_OUT)
            assert said.startswith(nobody) and "did not answer within 0.5 s" in said
            await w.registry.create("nodes.n1", wire.encode(NodeLease(boot="b")))
            _, said = await sh.run("tell", "coder", "hello")
            assert said == "mesh: no node runs coder now (`mesh ps` says why); the prompt waits for one\n"
            await place(w.registry, "coder", "life1")
            assert (await sh.run("tell", "coder", "hello"))[1] == ""

    run(scenario(), timeout=60)


def test_a_json_option_that_is_none_is_told_how_it_is_written(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with shell(server, subjects) as (_, sh):
            for verb in (("start", "x", "--kind", "K"), ("set", "coder")):
                _, said = await sh.run(*verb, "--budget", "usd=2", expect=exits.USAGE)
                assert said.startswith("""mesh: --budget takes a JSON object, as in --budget '{"usd": 2}'; 'usd=2' is none""")
            _, said = await sh.run("ask", "coder", "hello", "--metadata", "[1]", expect=exits.USAGE)
            assert "--metadata takes a JSON object" in said

    run(scenario(), timeout=60)


def test_control_verbs_print_the_wires_own_objects(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with shell(server, subjects) as (w, sh), w.owner("coder") as owner:
            owner.replies = {
                "status": {**STATUS, "agent_state": {"n": 1}},
                "interrupt": {"interrupted": True},
                "cancel": {"cancelled": False},
                "resume": {"resumed": True},
            }
            assert await sh.json("status", "coder", "--content") == {
                "v": 1,
                **STATUS,
                "failed": None,
                "waiting": None,
                "configuration": None,
                "since": None,
                "sender": None,
                "tool": None,
                "callback": None,
                "open": [],
                "open_more": 0,
                "agent_state": {"n": 1},
            }
            owner.replies["status"] = {**STATUS, "callback": "init_agent"}
            assert "callback     init_agent\n" in (await sh.run("status", "coder"))[0]
            owner.replies["status"] = STATUS
            text = (await sh.run("status", "coder"))[0]
            assert "callback" not in text
            assert "generation   3071\n" in text
            assert await sh.json("interrupt", "coder", "--ref", "7") == {"v": 1, "interrupted": True}
            told = "request 7 does not wait; if it runs, `mesh cancel coder 7 --running` ends it\n"
            assert (await sh.run("cancel", "coder", "7"))[0] == told
            assert (await sh.run("resume", "coder"))[0] == "resumed\n"
            owner.replies["interrupt"] = {"interrupted": False, "callback": "handle_event"}
            text, told = await sh.run("interrupt", "coder")
            assert text == "no such turn was running\n" and "coder is in handle_event, which was not touched" in told
            reply = {"interrupted": True, "callback": "pre_turn", "plain": True}
            owner.replies["interrupt"] = reply
            text, told = await sh.run("interrupt", "coder")
            assert text == "interrupted\n" and "pre_turn is a plain function" in told
            assert await sh.json("interrupt", "coder") == {"v": 1, **reply}
            owner.replies["reply"] = {"replied": True}
            assert (await sh.run("reply", "coder", "7", "done"))[0] == "replied\n"
            assert owner.requests[-1] == {"op": "reply", "ref": "7", "text": "done"}
            await sh.run("notify", "coder", '{"a": 1}', "--quiet")
            await eventually(lambda: [mail.event for mail in owner.mail] == [{"a": 1}])

    run(scenario(), timeout=60)


def test_start_ps_nodes_and_stop(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with shell(server, subjects, agents=()) as (w, sh), w.placer():
            await w.registry.create(node_key("n1"), wire.encode(NodeLease(boot="b", kinds=("Coder",), labels={"gpu": "a"})))
            out, _ = await sh.run(
                "start", "coder", "--kind", "Coder", "--option", "depth=3", "--option", "name=deep", "--label", "gpu=a"
            )
            assert out == "coder is running on n1\n"
            spec = await w.spec("coder")
            assert (spec.options, spec.labels) == ({"depth": 3, "name": "deep"}, {"gpu": "a"})
            _, err = await sh.run("start", "coder", "--kind", "Coder", expect=exits.FAILED)
            assert "'n1'" in err

            listed = await sh.json("ps")
            assert listed == [{"name": "coder", "spec": json.loads(wire.encode(spec)), "node": "n1", "activity": None}]
            assert json.loads((await sh.run("ps", "-o", "jsonl"))[0]) == listed[0]
            header, row = (await sh.run("ps"))[0].splitlines()
            assert header.split()[:5] == ["NAME", "KIND", "BACKEND", "STATUS", "NODE"]
            assert row.split()[:5] == ["coder", "Coder", "-", "running", "n1"]
            assert [node["id"] for node in await sh.json("nodes")] == ["n1"]
            assert (await sh.run("nodes"))[0].splitlines()[1].split() == ["n1", "ready", "0", "-", "-", "gpu=a", "Coder"]

            assert (await sh.run("stop", "coder"))[0] == "coder is stopped\n"
            assert await sh.json("ps") == []
            assert len(await sh.json("ps", "--all")) == 1

    run(scenario(), timeout=60)


@pytest.mark.case(348)
@pytest.mark.case(349)
def test_a_misspelt_kind_leaves_nothing_behind_and_a_start_can_be_repeated(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with shell(server, subjects, agents=()) as (w, sh), w.placer():
            lease = wire.encode(NodeLease(boot="b", kinds=("Coder",)))
            await w.registry.create(node_key("n1"), lease)
            _, err = await sh.run("start", "coder", "--kind", "Codr", "--timeout", "0.6", expect=exits.TIMED_OUT)
            assert "did you mean 'Coder'?" in err and "--no-wait" in err
            assert await w.registry.get(spec_key("coder")) is None
            for _ in range(2):
                out, _ = await sh.run("start", "coder", "--kind", "Coder", "--if-exists", "use")
                assert out.startswith("coder is running on n1")
            assert "was there before" in out
            out, err = await sh.run("start", "later", "--kind", "Later", "--no-wait")
            assert out == "later is wanted\n" and "no live node serves the kind 'Later'" in err
            late = asyncio.create_task(sh.run("start", "late", "--kind", "Late", "--timeout", "30"))
            await w.registry.create(node_key("n2"), wire.encode(NodeLease(boot="b", kinds=("Late",))))
            assert (await late)[0].startswith("late is running")

    run(scenario(), timeout=60)


def test_exit_codes_tell_what_went_wrong(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with shell(server, subjects) as (w, sh), w.owner("coder") as owner:
            await place(w.registry, "coder", "life1")
            for usage in (
                ["ask", "coder"],
                ["nonsense"],
                ["ask", "a b", "hi"],
                ["ask", "coder", "hi", "--deadline", "nan"],
                ["ask", "coder", "hi", "--deadline", "1e300"],
                ["poll", "coder", "7", "-o", "xml"],
                ["start", "x"],
            ):
                assert "mesh: " in (await sh.run(*usage, expect=exits.USAGE))[1]
            assert "there is no agent 'nobody'" in (await sh.run("ask", "nobody", "hi", expect=exits.NOT_FOUND))[1]
            for asked in (["-o", "json"], ["-o=jsonl"], ["--output", "json"], ["--output=json"]):
                failed = json.loads((await sh.run("ask", "nobody", "hi", *asked, expect=exits.NOT_FOUND))[1])
                assert (failed["ok"], failed["error"]["code"]) == (False, "not_found")
            owner.go_on.clear()
            _, err = await sh.run("ask", "coder", "hi", "--timeout", "0.3", expect=exits.TIMED_OUT)
            assert "mesh poll coder" in err
            _, err = await sh.run("start", "other", "--kind", "X", "--timeout", "0.3", expect=exits.TIMED_OUT)
            assert "no live node serves the kind 'X'" in err and "not registered" in err
            _, err = await sh.run("--nats", "nats://127.0.0.1:1", "ps", expect=exits.UNREACHABLE)
            assert "mesh up" in err
            assert "Traceback" not in err
            assert "Traceback" in (await sh.run("ask", "nobody", "hi", "--debug", expect=exits.NOT_FOUND))[1]

    run(scenario(), timeout=60)


RESTRICTED = """
authorization { users = [
  { user: host, password: h }
  { user: guest, password: g, permissions: { publish: { deny: ["%s.inbox.>"] } } }
] }
"""


@pytest.mark.processes
def test_what_the_server_forbids_exits_6(subjects: Subjects) -> None:
    with Server(config=RESTRICTED % subjects.root) as server:

        def url(user: str) -> str:
            return server.url.replace("nats://", f"nats://{user}@")

        async def scenario() -> None:
            host = _As(server, url("host:h"))
            async with world(host, subjects) as w:
                await w.write_spec("coder")
                sh = Shell(host, subjects)
                _, err = await sh.run("--nats", url("guest:g"), "tell", "coder", "hi", expect=exits.NOT_PERMITTED)
                assert f"{subjects.root}.inbox.coder" in err
                _, err = await sh.run("--nats", url("guest:wrong"), "ps", expect=exits.NOT_PERMITTED)
                assert "credentials" in err

        run(scenario(), timeout=60)


class _As(Server):
    """A running server, under the address of one of its users."""

    def __init__(self, server: Server, url: str) -> None:
        self._url = url

    @property
    def url(self) -> str:
        return self._url


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["", "stream"])
@pytest.mark.parametrize("waits", [True, False])
def test_ctrl_c_withdraws_the_prompt(server: Server, subjects: Subjects, waits: bool, stream: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with shell(server, subjects) as (w, sh), w.owner("coder") as owner:
            owner.go_on.clear()
            owner.replies = {"cancel": {"cancelled": waits}, "interrupt": {"interrupted": True}}
            async with sh.started("ask", "coder", "hello", *stream) as process:
                await eventually(lambda: owner.mail)
                ref = owner.mail[0].ref
                process.send_signal(signal.SIGINT)  # perhaps before it has been told that the prompt is stored
                _, err = await process.communicate()
                assert process.returncode == exits.INTERRUPTED, err.decode()
            ops = [{"op": "cancel", "ref": ref, "tree": True}, {"op": "interrupt", "ref": ref}]  # the second for an older owner
            assert owner.requests == (ops[:1] if waits else ops)
            assert b"withdrawing" in err

    run(scenario(), timeout=60)


def test_options_come_from_flag_then_environment_then_file(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    nowhere = "nats://127.0.0.1:1"

    async def scenario() -> None:
        async with shell(server, subjects) as (_, _):
            sh = Shell(server, subjects, tmp_path)
            (tmp_path / ".mesh").mkdir()
            file = tmp_path / ".mesh" / "url"
            file.write_text(nowhere)
            assert len(await sh.json("ps")) == 1, "the environment beats the file"
            sh.environ["MESH_NATS_URL"] = nowhere
            assert len(await sh.json("ps", "--nats", server.url)) == 1, "a flag beats the environment"
            del sh.environ["MESH_NATS_URL"]
            file.write_text(server.url + "\n")
            assert len(await sh.json("ps")) == 1, "the file counts when nothing else says it"
            await sh.run("ps", "--root", "another", expect=exits.UNREACHABLE)

    run(scenario(), timeout=60)


@pytest.mark.processes
def test_help_costs_little_more_than_the_parser() -> None:
    def seconds(command: Sequence[str]) -> float:
        """Processor time: of that a busy machine takes nothing."""

        def used() -> float:
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            return usage.ru_utime + usage.ru_stime

        def once() -> float:
            before = used()
            subprocess.run(command, check=True, capture_output=True)
            return used() - before

        return min(once() for _ in range(5))

    parser = seconds((sys.executable, "-c", "import cyclopts"))
    # Each verb and each global option has to be parsed and printed; an import of nats or of an SDK would cost ten times that.
    assert seconds((*PROGRAM, "--help")) < 4 * parser


@pytest.mark.processes
def test_help_loads_neither_nats_nor_the_client() -> None:
    code = (
        "import sys; from agentmesh_client.cli.main import main; main(['--help']); "
        "print([m for m in ('nats', 'msgspec', 'asyncio', 'agentmesh_client.client') if m in sys.modules])"
    )
    shown = subprocess.run((sys.executable, "-c", code), check=True, capture_output=True, text=True).stdout
    assert shown.splitlines()[-1] == "[]"
    assert all(f"\n  {verb}: " in shown for verb in main.VERBS)


class _EntryPoint:
    def __init__(self, name: str, loaded: object) -> None:
        self.name = name
        self.value = f"somewhere:{name}"
        self._loaded = loaded

    def load(self) -> object:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


def test_a_broken_hosting_verb_breaks_no_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def up(*, port: int = 1) -> int:
        """Host things."""
        print(f"port {port}")
        return 7

    async def later() -> int:
        """Host things, later."""
        return 8

    verbs = [
        _EntryPoint("up", up),
        _EntryPoint("later", later),
        _EntryPoint("node", ImportError("no such module")),
        _EntryPoint("ask", ValueError("may not replace a verb")),
    ]
    monkeypatch.setattr(main, "entry_points", lambda group: verbs if group == main.GROUP else [])
    assert main.main(["up", "--port", "5"]) == 7
    assert capsys.readouterr().out == "port 5\n"
    assert main.main(["up", "--nowhere"]) == exits.USAGE
    assert "See `mesh up --help`." in capsys.readouterr().err
    assert main.main(["later"]) == 8
    assert main.main(["node", "--x"]) == exits.FAILED
    assert "`mesh node` (somewhere:node) cannot be loaded" in capsys.readouterr().err
    assert main.main(["--help"]) == exits.OK
    shown = capsys.readouterr().out
    assert "up: Host things." in shown
    assert "no such module" in shown
    assert main.main(["zork"]) == exits.USAGE
    assert "zork" in capsys.readouterr().err


def test_events_ends_quietly_when_its_reader_has_left(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with shell(server, subjects) as (w, mesh), mesh.started("events", "nobody") as events:
            assert events.stdout is not None and events.stderr is not None
            assert b"no node runs an agent 'nobody' now" in await events.stderr.readline()
            assert b"waiting for events" in await events.stderr.readline()
            transport = events._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
            transport.close()  # as `| head` does

            async def over() -> bool:
                await w.transport.publish(subjects.event("nobody", "started"), b'{"kind": "started"}')
                return events.returncode is not None

            await eventually(over, 30)
            assert (events.returncode, await events.stderr.read()) == (exits.OK, b"")

    run(scenario())


def test_the_installed_entry_points_are_hosting_verbs() -> None:
    assert {"up", "node", "supervisor"} <= {entry.name for entry in importlib.metadata.entry_points(group=main.GROUP)}


@pytest.mark.parametrize(
    ("given", "verb", "arguments", "options"),
    [
        ("ask a b", "ask", {"name": "a", "text": "b"}, {}),
        ("--nats u ask a b", "ask", {"name": "a", "text": "b"}, {"nats": "u"}),
        ("ask --nats=u a b --quiet", "ask", {"name": "a", "text": "b"}, {"nats": "u", "quiet": True}),
        ("-o json --root=r --quiet ps --all", "ps", {"every": True}, {"output": "json", "root": "r", "quiet": True}),
        ("ps -o=jsonl --debug", "ps", {}, {"output": "jsonl", "debug": True}),
        ("ask a -- --quiet", "ask", {"name": "a", "text": "--quiet"}, {}),
        ("tell a -hello", "tell", {"name": "a", "text": "-hello"}, {}),
        ("--root r dead show a 7 -o json", "show", {"name": "a", "letter": 7}, {"root": "r", "output": "json"}),
    ],
)
def test_global_options_may_stand_anywhere(given: str, verb: str, arguments: dict[str, Any], options: dict[str, Any]) -> None:
    call = main.Invocation(given.split())
    command, bound = call.parse()
    assert (command.__name__, bound.arguments) == (verb, {**arguments, "options": GlobalOptions(**options)})
    assert call.options == bound.arguments["options"]


@pytest.mark.parametrize("given", ["--nats u --root r up", "up --nats u --root r", "--nats v up --nats u --root r"])
def test_a_hosting_verb_takes_servers_and_root_as_its_own(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    def up(*, nats: str | None = None, root: str | None = None) -> int:
        assert (nats, root) == ("u", "r")
        return 7

    monkeypatch.setattr(main, "entry_points", lambda group: [_EntryPoint("up", up)])
    assert main.main(given.split()) == 7


@pytest.mark.parametrize("given", ["--nats", "ps -o", "-o xml ps", "ps --zork"])
def test_a_wrong_option_is_one_line(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(given.split()) == exits.USAGE
    assert re.fullmatch(r"mesh: .* See `mesh (ps )?--help`\.\n", capsys.readouterr().err)


@pytest.mark.parametrize("given", ["", "--help"])
def test_the_global_options_stand_in_the_help(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(given.split()) == exits.OK
    shown = capsys.readouterr().out
    assert all(f"  {option} " in shown for option in ("--nats", "--root", "--output, -o"))


def test_each_error_has_its_exit_code() -> None:
    codes = {
        errors.BadRequest("x"): exits.USAGE,
        errors.TooLarge("x"): exits.USAGE,
        errors.NotFound("x"): exits.NOT_FOUND,
        errors.AskTimeout("x"): exits.TIMED_OUT,
        errors.Unavailable("x"): exits.UNREACHABLE,
        errors.Unavailable("x", details={"status": "wanted"}): exits.TIMED_OUT,
        errors.NotPermitted("x"): exits.NOT_PERMITTED,
        errors.TlsFailed("x"): exits.UNREACHABLE,
        errors.AlreadyStarted("x"): exits.FAILED,
        errors.TurnTimeout("x"): exits.FAILED,
        OSError("x"): exits.FAILED,
    }
    assert {error: exits.code(error) for error in codes} == codes
    assert exits.sentence(errors.NotFound("no\n  agent")) == "no agent"
    assert exits.sentence(OSError("disk")) == "OSError: disk"


def test_tables_are_aligned_and_coloured_only_on_demand() -> None:
    rows = [["a", "running"], ["longer", "failed"]]
    assert output.aligned(("NAME", "STATUS"), rows) == "NAME    STATUS\na       running\nlonger  failed"
    assert "\x1b[32mrunning\x1b[0m" in output.aligned(("NAME", "STATUS"), rows, colour=True)
    assert output.aligned(("NAME",), []) == "NAME"


def test_ages_are_short() -> None:
    now = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    ages = {
        "2030-01-01T00:00:00Z": "0s",
        "2029-12-31T23:58:30Z": "1m",
        "2029-12-31T20:00:00Z": "4h",
        "2029-12-01T00:00:00Z": "31d",
    }
    assert {moment: output.age(moment, now) for moment in ages} == ages
    assert [output.age(moment, now) for moment in (None, "", "yesterday", "2030-01-01T00:00:00")] == ["-"] * 4


def test_a_cell_is_one_line() -> None:
    assert output.one_line("two\nlines") == "two lines"
    assert output.one_line("x" * 61) == "x" * 59 + "…"
    assert [output.one_line(text) for text in (None, "", " \n")] == ["-"] * 3


# --- for people ---------------------------------------------------------------------------------------------------
def test_a_text_without_quotes_is_told_to_take_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["-o", "json", "ask", "coder", "rename", "the", "--stream", "module"]) == exits.USAGE
    assert 'quotes: `mesh ask coder "rename the module"`' in capsys.readouterr().err
    assert main.main(["status", "coder", "now"]) == exits.USAGE
    err = capsys.readouterr().err
    assert "quotes" not in err and "See `mesh status --help`" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("dead", "ls", "coder"), "coder has no dead letters"),
        (("ps",), "there are no agents"),
        (("nodes",), "no node is live"),
    ],
)
def test_nothing_is_said_to_be_nothing(server: Server, subjects: Subjects, arguments: tuple[str, ...], said: str) -> None:
    async def main() -> None:
        async with shell(server, subjects, agents=()) as (_, sh):
            out, err = await sh.run(*arguments)
            assert out == "" and said in err
            assert await sh.json(*arguments) == []

    run(main())


def test_money_is_rounded_for_people() -> None:
    assert [output.dollars(amount) for amount in (0, 0.01234567, 12.3, 0.00000123)] == [
        "$0.0000",
        "$0.0123",
        "$12.3000",
        "<$0.0001",
    ]
    usage = {"input_tokens": 7, "cost_usd": 0.1 + 0.2, "delegated": {"usd": 1.23456789, "tokens": 3}, "usd": 0.00001}
    assert json.loads(output.usage_text(usage)) == {
        "input_tokens": 7, "cost_usd": 0.3, "delegated": {"usd": 1.2346, "tokens": 3}, "usd": 0.00001,
    }  # fmt: skip


@pytest.mark.case(680)
def test_an_event_says_on_whose_behalf_it_was_in_words_and_nothing_where_nobody_is_known() -> None:
    event = {"v": 1, "time": "2026-12-01T06:00:00.000Z", "kind": "prompt_start", "agent": "desk", "ref": "7"}
    shop = [{"kind": "user", "name": "shop", "account": "CALLERS"}, {"kind": "agent", "name": "boss"}]
    assert admin._line({**event, "chain": shop}).endswith("desk  ref=7 for user shop of CALLERS -> agent boss")
    assert admin._line({**event, "chain": []}).endswith("desk  ref=7")
    assert admin._line({**event, "chain": [{"kind": "guild"}]}).endswith('for [{"kind":"guild"}]')
