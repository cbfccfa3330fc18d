"""`avapd top` on a real terminal, and without one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.database import Database
from support.load import Load
from support.server import Server
from support.terminal import Terminal
from support.waiting import wait_until

Serve = Callable[..., Server]
AVAPD = str(Path(sys.executable).parent / "avapd")
LEFT = "\x1b[?7h\x1b[?25h\x1b[?1049l"


@pytest.fixture(scope="module")
def table(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url)
    made.insert([("addVar", "[]", "function", "x = 1\n"), ("evil\x1b[2J\n", "{}", "function", "x = 1\n")])
    yield made
    made.drop()


@pytest.fixture(scope="module")
def server(table: Database) -> Iterator[Server]:
    """Two workers, frozen for a reason that would clear a terminal, with a denied name that would too."""
    with Server(table.reader_url, env={"AVAPD_SILENCE_SECONDS": "60"}) as made:
        made.wait_serving()
        assert made.order("deny", "evil\x1b[2J").returncode == 0
        assert made.order("freeze", "--reason", "because \x1b[2J of \u202e this").returncode == 0
        yield made


def top(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`avapd top` where there is no terminal."""
    return subprocess.run(
        [AVAPD, "top", *arguments], capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
    )


def address(server: Server) -> str:
    return f"127.0.0.1:{server.admin_port}"


def shown(terminal: Terminal, text: str, seconds: float = 20) -> None:
    wait_until(lambda: any(text in line for line in terminal.screen), seconds, f"{text!r} is shown")


def column(lines: list[str], name: str) -> list[str]:
    """The right-aligned cells below a head, up to the next empty line. AssertionError when it is not there."""
    heads = [(number, line) for number, line in enumerate(lines) if name in line.split()]
    assert heads, lines
    number, head = heads[0]
    end = head.index(name) + len(name)
    cells = []
    for line in lines[number + 1 :]:
        if not line:
            break
        cells.append(line[:end].split()[-1])
    return cells


def test_it_shows_what_the_clients_do(server: Server) -> None:
    """Calls a second as the clients count them, connections, P95, the switches; each second anew."""
    with Terminal(AVAPD, "top", address(server), columns=140) as terminal:
        with Load(server.calls, lambda calls: calls.get("addVar", wait=True), 2) as load:
            wait_until(lambda: server.metric("avap_connections") == 2, 20)

            def busy() -> list[str]:
                lines = terminal.screen
                rate = float(column(lines, "calls/s")[0].replace(",", "").replace("-", "0"))
                return lines if rate > 50 and column(lines, "conns")[0] == "2" else []

            lines = wait_until(busy, 30)
        span = load.history[-1].ended - load.history[0].began
        assert float(column(lines, "calls/s")[0].replace(",", "")) < 20 * len(load.history) / span
        assert column(lines, "p95")[0] in {"µs", "ms"}
        wait_until(lambda: column(terminal.screen, "calls/s")[0] == "0", 20)
        assert "ready" in terminal.screen[2]
        assert sum("SERVING" in line for line in terminal.screen) == 2


def test_hostile_texts_do_not_move_the_terminal(server: Server) -> None:
    """Reasons and names are shown escaped; nothing but our own codes comes out."""
    with Terminal(AVAPD, "top", address(server)) as terminal:
        shown(terminal, "frozen: because \\u001b[2J of \\u202e this")
        shown(terminal, "denied: evil\\u001b[2J")
        assert "\x1b[2J" not in terminal.raw
        assert "\u202e" not in terminal.raw


@pytest.mark.parametrize(
    "leave",
    [
        lambda terminal: terminal.press("q"),
        lambda terminal: terminal.press("\x03"),
        lambda terminal: terminal.process.send_signal(signal.SIGTERM),
    ],
    ids=["q", "Ctrl-C", "SIGTERM"],
)
def test_it_gives_the_terminal_back(server: Server, leave: Callable[[Terminal], None]) -> None:
    """By q, Ctrl-C and SIGTERM: exit 0, the first screen, the cursor and the settings are as they were."""
    with Terminal(AVAPD, "top", address(server)) as terminal:
        shown(terminal, "SERVING")
        assert terminal.attributes() != terminal.settings
        leave(terminal)
        assert terminal.process.wait(10) == 0
        wait_until(lambda: terminal.output.endswith(LEFT))
        assert terminal.attributes() == terminal.settings


def test_ctrl_z_gives_it_back_for_a_while(server: Server) -> None:
    """Stopped, the shell has its terminal; continued, all is drawn again."""
    with Terminal(AVAPD, "top", address(server)) as terminal:
        shown(terminal, "SERVING")
        terminal.press("\x1a")
        wait_until(lambda: psutil.Process(terminal.process.pid).status() == psutil.STATUS_STOPPED)
        wait_until(lambda: terminal.output.endswith(LEFT))
        assert terminal.attributes() == terminal.settings
        terminal.process.send_signal(signal.SIGCONT)
        wait_until(lambda: "\x1b[?1049h" in terminal.output.rpartition(LEFT)[2])
        assert terminal.attributes() != terminal.settings


def test_it_follows_the_size_of_its_window(server: Server) -> None:
    """No more lines than there are, and sentences broken to the width."""
    with Terminal(AVAPD, "top", address(server)) as terminal:
        shown(terminal, "frozen: because")
        terminal.resize(26, 8)
        wait_until(lambda: len(terminal.screen) == 8)
        shown(terminal, "frozen: because")
        assert not any("of \\u202e this" in line and "because" in line for line in terminal.screen)
        terminal.resize(120, 40)
        shown(terminal, "worker ")


def test_it_outlives_a_server(sample: Database, serve: Serve) -> None:
    """A replica that goes is SILENT, one that comes back is there again, and the other is shown all the time."""
    first = serve(sample.reader_url, env={"AVAPD_WORKERS": "1"}).wait_serving()
    other = serve(sample.reader_url, env={"AVAPD_WORKERS": "1"}).wait_serving()
    with Terminal(AVAPD, "top", address(first), address(other), "--interval", "0.3", lines=40) as terminal:
        wait_until(lambda: [line.split()[1] for line in terminal.screen[2:4]] == ["ready", "ready"], 20)
        first.process.kill()
        wait_until(lambda: [line.split()[1] for line in terminal.screen[2:4]] == ["SILENT", "ready"], 20)
        shown(terminal, f"{address(first)}: no answer: ")
        serve(sample.reader_url, env={"AVAPD_WORKERS": "1", "AVAPD_ADMIN_PORT": str(first.admin_port)})
        wait_until(lambda: [line.split()[1] for line in terminal.screen[2:4]] == ["ready", "ready"], 30)


def test_without_a_terminal_it_prints_once(server: Server) -> None:
    """Plain text without codes; exit 0, and 1 when a replica is silent."""
    for arguments in ((), ("--once",)):
        done = top(address(server), "--interval", "0.1", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[1].startswith(f"{address(server)}  ready")
        assert "\x1b" not in done.stdout
    silent = top("127.0.0.1:1", address(server), "--interval", "0.1")
    assert silent.returncode == 1
    assert "SILENT" in silent.stdout


def test_as_json_it_tells_the_same(server: Server) -> None:
    """The status of each replica, with the traffic of the interval; or why there is none."""
    told, silent = json.loads(top("--json", "--interval", "0.2", address(server), "127.0.0.1:1").stdout)
    assert told["version_hash"] == server.status()["version_hash"]
    assert (told["rate"], told["error_rate"], told["p95_seconds"]) == (0.0, 0.0, None)
    assert [one["state"] for one in told["workers"]] == ["SERVING", "SERVING"]
    assert silent == {"replica": "127.0.0.1:1", "error": "no answer: ClientConnectorError"}


def test_the_fleet_is_asked_the_same_way(server: Server) -> None:
    """Hash and age of each replica; exit 1 when one is silent."""
    done = subprocess.run([AVAPD, "fleet", address(server), "127.0.0.1:1"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (server.status()["version_hash"] or "")[:12] in done.stdout
    assert "no answer: ClientConnectorError" in done.stdout
