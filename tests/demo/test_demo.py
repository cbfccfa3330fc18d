"""`avapd demo` as somebody tries it who has just installed avapd: it keeps its word and leaves nothing behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.calls import Calls
from support.server import Server, free_port
from support.waiting import wait_until

from avapd.control import package
from avapd.demo import Demo
from avapd.demo.catalog import commands

AVAPD = Path(sys.executable).parent / "avapd"
TOOLS = f"{os.environ['PATH']}:{Path.home() / 'go/bin'}"
_INTRODUCTION = "definitions are served on"


class Running:
    """`avapd demo` in a session of its own: Ctrl-C is sent as a terminal sends it, and all that it starts is found."""

    def __init__(self, *arguments: str, folder: Path | None = None, wait: bool = True) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="avapd-demo-", dir="/tmp"))  # socket paths must be short
        self.folder.chmod(0o755)  # PostgreSQL runs as nobody when the test runs as root
        self.cwd = folder or self.folder
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self.temporary.chmod(0o1777)
        self._out = self.folder / "out"
        environ = {"PATH": os.environ["PATH"], "TMPDIR": str(self.temporary), "HOME": str(self.folder)}
        ports = ("--port", str(self.port), "--admin-port", str(self.admin_port), "--workers", "2")
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [AVAPD, "demo", *ports, *arguments], env=environ, cwd=self.cwd, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        if wait:
            self.wait_introduced()

    @property
    def out(self) -> str:
        return self._out.read_text()

    def wait_introduced(self) -> None:
        def introduced() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"the demo ended with {self.process.returncode}:\n{self.out}")
            return "Ctrl-C stops" in self.out

        wait_until(introduced, 40, "the introduction")

    def commands(self) -> list[str]:
        """The indented lines of the introduction that are no sentence."""
        lines = [line[2:] for line in self.out.splitlines() if line.startswith("  ") and line.strip()]
        return [line for line in lines if not line.endswith((":", "."))]

    def line(self, part: str, number: int = 0) -> str:
        """The printed command that holds this text."""
        return [line for line in self.commands() if part in line][number]

    def shell(self, line: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a printed line as printed, in the shell in which the first one has been run."""
        program = f"set -o pipefail\n{self.line('export')}\n{line}\n"
        done = subprocess.run(
            ["bash", "-c", program], cwd=self.cwd, env={"PATH": TOOLS, "HOME": str(self.folder)},
            capture_output=True, text=True, errors="replace", check=False, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, done
        return done

    def key(self) -> str:
        return self.line("export").partition("=")[2]

    def calls(self) -> Calls:
        return Calls(f"127.0.0.1:{self.port}", self.key())

    def processes(self) -> list[psutil.Process]:
        """All of its session, whoever their parents are now, and all that name its folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                ours = os.getsid(process.pid) == self.process.pid
                if ours or str(self.folder) in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ctrl-C, to the foreground group as a terminal sends it; the exit code."""
        os.killpg(self.process.pid, number)
        return self.process.wait(timeout=20)

    def assert_nothing_left(self) -> None:
        """No process, no file, nobody on its ports."""
        wait_until(lambda: self.processes() == [], 5, f"left over: {self.processes()}")
        assert list(self.temporary.iterdir()) == []
        for port in (self.port, self.admin_port):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()

    def end(self) -> None:
        """Kill what is left and remove the folder."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Starts demos and ends what is left of them."""
    started: list[Running] = []

    def make(*arguments: str, **options: Any) -> Running:
        started.append(Running(*arguments, **options))
        return started[-1]

    yield make
    for running in started:
        running.end()


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    """One demo for all tests that only look."""
    running = Running()
    yield running
    running.end()


# --- the sample catalog -------------------------------------------------------------------------------------


def test_there_are_enough_samples() -> None:
    """At least 120, with names that are theirs alone and fit the column."""
    names = [command["name"] for command in commands()]
    assert len(names) >= 120
    assert len(set(names)) == len(names)
    assert all(0 < len(name) <= 100 for name in names)


@pytest.mark.parametrize("command", commands(), ids=lambda command: command["name"])
def test_a_sample_is_sound(command: dict[str, Any]) -> None:
    """Its code compiles and defines `run`, its interface is a JSON array of objects that name an item and a type."""
    scope = compile(command["code"], command["name"], "exec").co_names
    assert "run" in scope
    interface = json.loads(command.get("interface", "[]"))
    assert isinstance(interface, list)
    for item in interface:
        assert isinstance(item["item"], str)
        assert item["type"] in {"variable", "value"}
        assert isinstance(item["required"], bool)
    assert command["description"]


def test_the_samples_show_every_kind_of_row() -> None:
    """Some are in `avap_bytecode`, some leave type or interface out."""
    samples = commands()
    assert sum(bool(command.get("compiled")) for command in samples) >= 3
    assert sum("type" not in command for command in samples) >= 1
    assert sum("interface" not in command for command in samples) >= 1


# --- what is served -----------------------------------------------------------------------------------------


def test_the_demo_serves_the_samples(demo: Running) -> None:
    """Each of them, as it stands in the files, with its defaults and hash; the printed count is right."""
    with demo.calls() as calls:
        served = {command.name: command for command in calls.catalog().commands}
    samples = {command["name"]: command for command in commands()}
    assert served.keys() == samples.keys()
    for name, sample in samples.items():
        command = served[name]
        assert command.code == sample["code"].encode()
        assert command.hash == hashlib.sha256(command.code).hexdigest()
        assert command.type == sample.get("type", "function")
        assert command.interface_json == sample.get("interface", "[]")
    assert f"  {len(samples)} {_INTRODUCTION} 127.0.0.1:{demo.port}." in demo.out


def test_the_demo_asks_for_its_key(demo: Running) -> None:
    """The key is made for this run and is needed."""
    assert len(demo.key()) >= 24
    with Calls(f"127.0.0.1:{demo.port}") as calls:
        assert calls.get("addVar").code == 16


def test_the_demo_listens_on_loopback_only(demo: Running) -> None:
    """GRPC and admin port; PostgreSQL on none, only a socket in its folder."""
    listening = set()
    for process in demo.processes():
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                listening.add((connection.laddr.ip, connection.laddr.port))
    assert listening == {("127.0.0.1", demo.port), ("127.0.0.1", demo.admin_port)}


def test_the_demo_reads_with_a_role_that_cannot_write(demo: Running) -> None:
    """The server's connections belong to avapd_reader, as in production."""
    psql = demo.line("UPDATE").partition(" -c ")[0]
    roles = demo.shell(f"{psql} -Atc \"SELECT has_table_privilege('avapd_reader', 'obex_dapl_functions', 'UPDATE')\"")
    assert roles.stdout.strip() == "f"


def test_the_demo_shows_readable_logs(demo: Running) -> None:
    """Not a line of JSON, no escape (it is no terminal), no Traceback."""
    assert "CATALOG OK" in demo.out
    assert not re.search(r'^\{"|\x1b|Traceback|Error', demo.out, re.MULTILINE)


# --- what it prints -----------------------------------------------------------------------------------------


def test_every_printed_line_is_known_here(demo: Running) -> None:
    """So each of them is run below: a new one needs a new test."""
    tools = ("curl ", " top ", "grpcurl ", "ghz ")
    kinds = ("export API_KEY=", " get addVar", " list", " sync", *tools, "UPDATE", " get addVar")
    printed = demo.commands()
    assert len(printed) == len(kinds)
    for line, kind in zip(printed, kinds, strict=True):
        assert kind in line


def test_the_printed_get_works(demo: Running) -> None:
    """It prints the code of the sample."""
    sample = next(command for command in commands() if command["name"] == "addVar")
    assert demo.shell(demo.line(" get addVar")).stdout.endswith(sample["code"])


def test_the_printed_list_works(demo: Running) -> None:
    """A head and a line for each sample."""
    assert len(demo.shell(demo.line(" list")).stdout.splitlines()) == 1 + len(commands())


def test_the_printed_sync_works(demo: Running) -> None:
    """It tells the number of definitions."""
    assert re.search(rf"^definitions +{len(commands())}$", demo.shell(demo.line(" sync")).stdout, re.MULTILINE)


def test_the_printed_curl_works(demo: Running) -> None:
    """It shows our metrics."""
    if shutil.which("curl", path=TOOLS) is None:
        pytest.skip("curl is not installed")
    assert f"avap_cache_size {float(len(commands()))}" in demo.shell(demo.line("curl ")).stdout


def test_the_printed_top_works(demo: Running) -> None:
    """It shows that the demo is ready, and how many definitions it serves; the page has them too."""
    line = demo.line(" top ")
    shown = demo.shell(line).stdout.splitlines()[1].split()
    assert (shown[1], str(len(commands())) in shown) == ("ready", True)
    (page,) = re.findall(r"http://127\.0\.0\.1:\d+(?= shows how)", demo.out)
    assert line.endswith(page.removeprefix("http://"))
    with urllib.request.urlopen(urllib.request.Request(page, headers={"Accept": "text/html"}), timeout=10) as answer:
        assert b"<h1>avapd</h1>" in answer.read()


@pytest.mark.parametrize("tool", ["grpcurl", "ghz"])
def test_the_printed_tools_work(demo: Running, tool: str) -> None:
    """Grpcurl shows the definition, ghz has all calls answered; both through reflection, both with the key."""
    if shutil.which(tool, path=TOOLS) is None:
        pytest.skip(f"{tool} is not installed")
    out = demo.shell(demo.line(f"{tool} ")).stdout
    if tool == "grpcurl":
        assert json.loads(out)["name"] == "addVar"
    else:
        assert re.search(r"\[OK\]\s+20000 responses", out)


def test_the_printed_update_is_served(demo: Running) -> None:
    """The printed psql changes a row, and the get printed after it shows the edit within the printed time."""
    promised = int(re.findall(r"see it served within (\d+) seconds:", demo.out)[0])
    assert demo.shell(demo.line("UPDATE")).stdout.strip() == "UPDATE 1"
    line = demo.line(" get addVar", 1)
    wait_until(
        lambda: demo.shell(line).stdout.startswith("# edited\n"), promised + 1
    )  # a second for the command itself


# --- the end ------------------------------------------------------------------------------------------------


def test_ctrl_c_removes_everything(start: Callable[..., Running]) -> None:
    """Exit code 0, and no process, no file and no shared memory is left; the last words are no Traceback."""
    demo = start()
    family = psutil.Process(demo.process.pid).children(recursive=True)
    assert len(family) >= 4  # two workers, PostgreSQL and its helpers
    names, shared = set(), set()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # PostgreSQL's process of a poll is gone soon
            names.add(process.name())
            shared |= {Path(area.path) for area in process.memory_maps() if "/PostgreSQL." in area.path}
    assert any("postgres" in name for name in names)
    assert list(demo.temporary.iterdir())
    assert demo.interrupt() == 0
    demo.assert_nothing_left()
    assert not any(process.is_running() for process in family)
    assert not any(path.exists() for path in shared)
    assert "Traceback" not in demo.out


def test_sigterm_removes_everything_too(start: Callable[..., Running]) -> None:
    """As Ctrl-C: what `kill`, a supervisor or a container sends."""
    demo = start()
    demo.process.send_signal(signal.SIGTERM)
    assert demo.process.wait(timeout=20) == 0
    demo.assert_nothing_left()


def test_two_ctrl_c_end_at_once_and_clean(start: Callable[..., Running]) -> None:
    """Impatience loses nothing but the drain."""
    demo = start()
    os.killpg(demo.process.pid, signal.SIGINT)
    wait_until(lambda: "STOPPING" in demo.out)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.process.wait(timeout=20) in {0, 130}
    demo.assert_nothing_left()
    assert "Traceback" not in demo.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["data/PG_VERSION", ".s.PGSQL.5432"])
def test_a_signal_during_the_start_removes_everything(
    start: Callable[..., Running], number: signal.Signals, moment: str
) -> None:
    """Ctrl-C, `kill` or a closed terminal while the database is being made leaves nothing either."""
    demo = start(wait=False)
    wait_until(lambda: list(demo.temporary.glob(f"*/{moment}")), 20)
    demo.interrupt(number)
    demo.assert_nothing_left()
    assert "Traceback" not in demo.out


def test_a_closed_terminal_ends_the_demo(start: Callable[..., Running]) -> None:
    """SIGHUP, which refreshes a server, means here that nobody looks any more."""
    demo = start()
    os.killpg(demo.process.pid, signal.SIGHUP)
    demo.process.wait(timeout=8)
    demo.assert_nothing_left()


@pytest.mark.parametrize("flag", ["--port", "--admin-port"])
def test_a_taken_port_is_told_and_nothing_stays(start: Callable[..., Running], flag: str) -> None:
    """Exit 69 naming the port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        demo = start(flag, str(port), wait=False)
        setattr(demo, flag.strip("-").replace("-", "_"), free_port())
        assert demo.process.wait(timeout=30) == 69
    assert str(port) in demo.out
    assert "Traceback" not in demo.out
    demo.assert_nothing_left()


@pytest.mark.parametrize("arguments", [("--port", "0"), ("--port", "70000"), ("--workers", "0"), ("--workers", "-1")])
def test_bad_arguments_are_told_before_anything_starts(
    start: Callable[..., Running], arguments: tuple[str, ...]
) -> None:
    """Exit 78 or 2, naming the setting, and no database was made for it."""
    demo = start(*arguments, wait=False)
    wait_until(lambda: demo.process.poll() is not None or "Ctrl-C stops" in demo.out, 30)
    assert demo.process.poll() in {2, 78}
    assert arguments[0].strip("-") in demo.out.lower()
    assert "Traceback" not in demo.out
    demo.assert_nothing_left()


# --- options ------------------------------------------------------------------------------------------------


def test_keep_keeps_the_database(start: Callable[..., Running]) -> None:
    """A second run finds the edited row and the added one, and counts what is really there; only that folder stays."""
    first = start("--keep", "kept")
    assert "the database stays in kept" in first.out
    psql = first.line("UPDATE").partition(" -c ")[0]
    first.shell(first.line("UPDATE"))
    first.shell(f"{psql} -c \"INSERT INTO obex_dapl_functions (name, code) VALUES ('mine', 'x = 1')\"")
    assert first.interrupt() == 0
    first.assert_nothing_left()
    assert (first.cwd / "kept" / "PG_VERSION").exists()
    second = start("--keep", "kept", folder=first.cwd)
    assert second.shell(second.line(" get addVar")).stdout.startswith("# edited\n")
    with second.calls() as calls:
        assert calls.command("mine").code == b"x = 1"
        assert calls.catalog().total_count == len(commands()) + 1
    assert second.interrupt() == 0
    second.assert_nothing_left()
    assert (first.cwd / "kept" / "PG_VERSION").exists()
    assert f"  {len(commands()) + 1} {_INTRODUCTION}" in second.out


def test_keep_refuses_a_folder_that_is_something_else(start: Callable[..., Running]) -> None:
    """Files that are there stay, with their rights, and the demo says why it does not start."""
    folder = Path(tempfile.mkdtemp(prefix="avapd-keep-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "precious").write_text("mine")
    before = (folder.stat().st_uid, folder.stat().st_mode)
    demo = start("--keep", str(folder), wait=False)
    try:
        assert demo.process.wait(timeout=30) not in {0, None}
        assert (folder / "precious").read_text() == "mine"
        assert (folder.stat().st_uid, folder.stat().st_mode) == before
        assert str(folder) in demo.out
        assert "Traceback" not in demo.out
        demo.assert_nothing_left()
    finally:
        shutil.rmtree(folder)


def test_signed_serves_packages(start: Callable[..., Running]) -> None:
    """Every code is a package around the source whose hash is served; the key to verify it is printed."""
    demo = start("--signed")
    with demo.calls() as calls:
        served = calls.catalog().commands
    assert len(served) == len(commands())
    for command in served:
        assert command.code.startswith(package.MAGIC)
        assert hashlib.sha256(command.code[package.OVERHEAD :]).hexdigest() == command.hash
    assert demo.shell(demo.line(" get addVar")).stdout.startswith("AVAP")
    printed = re.search(r"SIGNING_KEY=(\S+)", demo.out)
    assert printed, "nobody can verify what is served"
    for command in served:
        package.payload_of(command.code, printed[1].encode())


def test_signed_packages_verify() -> None:
    """Under the key of the demo's settings; the stored ones of `avap_bytecode` are among them, and none is foreign."""
    with Demo(None, port=50051, admin_port=9464, signed=True) as sample:
        environ = sample.environment()
        key = environ["SIGNING_KEY"].encode()
        env = {name: environ[name] for name in ("API_KEY", "SIGNING_KEY")}
        with (
            Server(environ["DATABASE_URL"], env=env) as server,
            server.wait_serving().calls(environ["API_KEY"]) as calls,
        ):
            sources = {command["name"]: command["code"].encode() for command in commands()}
            for command in calls.catalog().commands:
                assert package.payload_of(command.code, key) == sources[command.name]
            for reason in ("stale_bytecode", "foreign_bytecode"):
                assert server.metric("avap_definitions_rejected", reason=reason) == 0
