"""The commands as an operator runs them: what they print, where they print it, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from support.database import Database
from support.server import KEY, Server, free_port
from support.waiting import wait_until

from avapd import __version__, config
from avapd.cli import cli

AVAPD = str(Path(sys.executable).parent / "avapd")
NOWHERE = "postgresql://avapd_reader@127.0.0.1:1/none"
UNGUARDED = (
    "production serves TLS (AVAPD_TLS_CERT_FILE and AVAPD_TLS_KEY_FILE) or, when AVAPD_INSECURE=1 asks for it, "
    "clear text; neither is set"
)
ROWS = [
    ("addVar", '[{"item": "name", "type": "variable"}]', "function", "def run(task, context):\n    return 1\n"),
    ("ñ 日本語", None, None, "# ñ, 日本語"),
    ("clear\x1b[2J\nscreen", None, None, "x = 1\n"),
]


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*arguments: str, command: Any = (AVAPD,), **environ: Any) -> Ran:
    """Run avapd with this environment and nothing else, from a folder that holds nothing."""
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **environ}
    done = subprocess.run(
        [*command, *arguments], env=env, cwd="/", capture_output=True, check=False, timeout=30, stdin=subprocess.DEVNULL
    )
    ran = Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in ran.out + ran.err, ran
    return ran


@pytest.fixture(scope="module")
def served(postgres_url: str) -> Iterator[Server]:
    database = Database(postgres_url)
    database.insert(ROWS)
    with Server(database.reader_url, env={"AVAPD_SILENCE_SECONDS": "60"}) as server:
        yield server.wait_serving()
    database.drop()


@pytest.fixture(scope="module")
def ask(served: Server) -> Callable[..., Ran]:
    """Runs a client command against the server of this file."""

    def asked(*arguments: str, **environ: str) -> Ran:
        return run(*arguments, **{"API_KEY": KEY, "AVAPD_TARGET": f"127.0.0.1:{served.port}", **environ})

    return asked


# --- every command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *sorted(cli.commands)])
def test_help_is_there(command: str) -> None:
    """`-h` and `--help` of each command end with 0, name the command and every option has a text."""
    arguments = [command] if command else []
    long, short = run(*arguments, "--help"), run(*arguments, "-h")
    assert long == short
    assert long.code == 0
    assert long.out.startswith(f"Usage: avapd {command}".rstrip())
    assert long.err == ""
    lines = long.out.split("Options:")[1].splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("  -"):
            assert re.search(r"\S  +\S", line[2:]) or following.startswith("      "), line


def test_python_m_is_the_same(served: Server) -> None:
    """`python -m avapd` prints what `avapd` prints, usage errors too."""
    module = (sys.executable, "-m", "avapd")
    for arguments in (["--version"], ["--help"], ["settings"], ["nothing"], ["get"]):
        assert run(*arguments) == run(*arguments, command=module)
    assert run("--version").out == f"avapd, version {__version__}\n"


@pytest.mark.parametrize(
    "arguments", ["nothing", "get", "get a b", "health --nothing", "list --timeout soon", "serve extra"]
)
def test_wrong_usage_is_told(arguments: str) -> None:
    """Exit 2 with a usage text on stderr, nothing on stdout."""
    ran = run(*arguments.split())
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: avapd" in ran.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_prints_a_script(shell: str) -> None:
    """`_AVAPD_COMPLETE=bash_source avapd` is what the shell sources."""
    ran = run(_AVAPD_COMPLETE=f"{shell}_source")
    assert ran.code == 0
    assert "_AVAPD_COMPLETE" in ran.out
    assert "avapd" in ran.out


def test_shell_completion_completes() -> None:
    """The script works in bash: `avapd he` becomes `health`, and options are known."""
    script = run(_AVAPD_COMPLETE="bash_source").out
    program = f"{script}\nCOMP_WORDS=(avapd he)\nCOMP_CWORD=1\n_avapd_completion avapd\necho ${{COMPREPLY[@]}}"
    env = {"PATH": f"{Path(AVAPD).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", program], env=env, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.split() == ["health"]
    assert "--target" in run(_AVAPD_COMPLETE="bash_complete", COMP_WORDS="avapd get --t", COMP_CWORD="2").out


def test_settings_is_a_table_of_all_settings() -> None:
    """Markdown: one row for each declaration, with its variable and default, and no secret of the environment."""
    lines: list[str] = []
    columns: list[int] = []
    for more in ([], ["--limits"]):
        ran = run("settings", *more, API_KEY="canary-key-0123456789", DATABASE_URL="postgresql://u:canary@h/d")
        assert ran.code == 0
        assert re.fullmatch(r"\|( ?:?-+:? ?\|)+", ran.out.splitlines()[1])
        assert "canary" not in ran.out
        rows = ran.out.strip().splitlines()
        lines += rows
        columns += {line.replace("\\|", "").count("|") for line in rows}
    assert len(lines) == 4 + len(config.settings())
    assert columns == [4, 5]  # of limits it is also told what a client sees
    for setting in config.settings().values():
        assert sum(f"`{setting.variables[0]}`" in line.split("|")[1] for line in lines) == 1


# --- get, list, sync, health --------------------------------------------------------------------------------


def test_get_prints_the_code_and_nothing_else(ask: Callable[..., Ran]) -> None:
    """The exact bytes of the code on stdout; name, type, interface, hash and size on stderr."""
    for name, interface, kind, code in ROWS[:2]:
        ran = ask("get", name)
        assert (ran.code, ran.out) == (0, code)
        for text in (name, kind or "function", interface or "[]", f"{len(code.encode())} bytes"):
            assert text in ran.err


def test_get_json_is_the_whole_definition(ask: Callable[..., Ran]) -> None:
    """One JSON object with every field; stderr is empty."""
    ran = ask("get", "addVar", "--json")
    found = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert (found["name"], found["type"], found["interface_json"], found["code"]) == (
        "addVar", "function", ROWS[0][1], ROWS[0][3],
    )  # fmt: skip
    assert re.fullmatch("[0-9a-f]{64}", found["hash"])


def test_list_shows_every_definition(ask: Callable[..., Ran]) -> None:
    """A table with a head, one line for a definition whatever its name, and the count on stderr; or JSON."""
    ran = ask("list")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].split() == ["name", "type", "bytes", "hash"]
    assert len(lines) == 1 + len(ROWS)
    assert "\x1b" not in ran.out
    assert ran.err.startswith("3 definitions, version ")
    found = json.loads(ask("list", "--json").out)
    assert [row["name"] for row in found] == sorted((row[0] for row in ROWS), key=str.encode)
    assert {row["bytes"] for row in found} == {len((row[3] or "").encode()) for row in ROWS}


def test_sync_tells_size_and_time(ask: Callable[..., Ran], served: Server) -> None:
    """Count, version, bytes, milliseconds and rate; the version is the server's."""
    ran = ask("sync")
    assert ran.code == 0
    assert re.search(r"^definitions +3$", ran.out, re.MULTILINE)
    found = json.loads(ask("sync", "--json").out)
    assert found["version_hash"] == served.status()["version_hash"]
    assert found["definitions"] == 3
    assert found["bytes"] > sum(len((row[3] or "").encode()) for row in ROWS)
    assert found["milliseconds"] > 0
    assert found["megabytes_per_second"] >= 0


@pytest.mark.parametrize("service", ["", "avap.DefinitionEngine", "liveness", "avapd.freshness"])
def test_health_ends_with_0_when_serving(ask: Callable[..., Ran], service: str) -> None:
    """For each service, as text and as JSON, without any key."""
    arguments = ["--service", service] if service else []
    ran = ask("health", *arguments, API_KEY="")
    assert (ran.code, "SERVING" in ran.out) == (0, True)
    assert json.loads(ask("health", *arguments, "--json", API_KEY="").out) == {"service": service, "status": "SERVING"}


def test_health_ends_with_1_when_not_serving() -> None:
    """Before the first catalog: NOT_SERVING and 1, but `liveness` is 0."""
    with Server(NOWHERE, env={"AVAPD_WORKERS": "1"}) as server:
        target = f"127.0.0.1:{server.port}"
        wait_until(lambda: run("health", "--service", "liveness", "--target", target).code == 0, 20)
        ran = run("health", "--json", "--target", target)
        assert (ran.code, json.loads(ran.out)["status"]) == (1, "NOT_SERVING")
        assert run("health", "--service", "avapd.freshness", "--target", target).code == 1
        for command in ("get addVar", "list", "sync"):
            ran = run(*command.split(), "--target", target, API_KEY=KEY)
            assert (ran.code, ran.out, ran.err) == (1, "", "avapd: UNAVAILABLE: No catalog loaded yet\n")


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (["get", "nothing"], {}, "avapd: NOT_FOUND: Command 'nothing' not found\n"),
        (["get", "\x1b[31m\n"], {}, "avapd: NOT_FOUND: Command '\\u001b[31m\\u000a' not found\n"),
        (["get", "addVar"], {"API_KEY": "wrong-key-of-enough-length"}, "avapd: UNAUTHENTICATED: Invalid Credentials\n"),
        (["list"], {"API_KEY": "wrong-key-of-enough-length"}, "avapd: UNAUTHENTICATED: Invalid Credentials\n"),
        (["health", "--service", "nothing"], {}, "avapd: NOT_FOUND: "),
    ],
    ids=["unknown", "escapes", "wrong key", "wrong key for list", "unknown service"],
)
def test_a_refusal_is_one_line_and_exit_1(
    ask: Callable[..., Ran], arguments: list[str], environ: dict[str, str], message: str
) -> None:
    """The status and the server's words, made harmless for a terminal; nothing on stdout."""
    ran = ask(*arguments, **environ)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(message)
    assert ran.err.count("\n") == 1
    assert "wrong-key" not in ran.err


@pytest.mark.parametrize("command", ["get addVar", "list", "sync", "health"])
def test_no_server_is_a_refusal_within_the_timeout(command: str) -> None:
    """Exit 1 and UNAVAILABLE when nobody listens."""
    target = f"127.0.0.1:{free_port()}"
    ran = run(*command.split(), "--target", target, "--timeout", "5", API_KEY=KEY)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("avapd: UNAVAILABLE: ")


def test_a_silent_server_is_given_up_after_the_timeout() -> None:
    """DEADLINE_EXCEEDED or UNAVAILABLE, exit 1: a health check must never hang."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ran = run("health", "--target", f"127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.5")
    assert (ran.code, ran.out) == (1, "")
    assert re.match("avapd: (DEADLINE_EXCEEDED|UNAVAILABLE): ", ran.err)


@pytest.mark.parametrize("environ", [{}, {"API_KEY": ""}, {"API_KEY": " , "}, {"API_KEY_FILE": "/nothing"}], ids=str)
def test_a_client_without_key_says_so(environ: dict[str, str]) -> None:
    """Exit 78 naming API_KEY, before any connection."""
    ran = run("get", "addVar", **environ)
    assert (ran.code, ran.out) == (78, "")
    assert "API_KEY" in ran.err


@pytest.mark.parametrize("key", ["clé-not-ascii-0123456789", "new\nline-0123456789abc", "esc\x1b-0123456789abcdef"])
def test_a_key_that_is_no_header_is_told(ask: Callable[..., Ran], key: str) -> None:
    """It cannot be sent, which is a setting's fault: exit 78, and the key is not printed."""
    ran = ask("get", "addVar", API_KEY=key)
    assert (ran.code, ran.out) == (78, "")
    assert "API_KEY" in ran.err
    assert key not in ran.err


def test_a_client_reads_its_key_from_a_file(ask: Callable[..., Ran], tmp_path: Path) -> None:
    """API_KEY_FILE as for the server: several keys, the first is used, a last newline does not matter."""
    path = tmp_path / "key"
    path.write_text(f"{KEY},another-key-0123456789\n")
    assert ask("get", "addVar", API_KEY="", API_KEY_FILE=str(path)).code == 0


def test_a_closed_pipe_is_no_error(ask: Callable[..., Ran], postgres_url: str, served: Server) -> None:
    """`avapd list | head -1` prints one line and complains about nothing."""
    database = Database(postgres_url)
    database.insert_many(5000, 10)
    with Server(database.reader_url, env={"AVAPD_WORKERS": "1"}) as server:
        server.wait_serving()
        for command in ("list", "list --json", "get command_000001"):
            line = f"set -o pipefail; {shlex.quote(AVAPD)} {command} --target 127.0.0.1:{server.port} | head -c 5"
            env = {"PATH": os.environ["PATH"], "API_KEY": KEY}
            done = subprocess.run(
                ["bash", "-c", line], env=env, capture_output=True, text=True, check=False, timeout=30
            )
            assert len(done.stdout) == 5
            assert "Traceback" not in done.stderr
            assert "BrokenPipe" not in done.stderr
    database.drop()


# --- check --------------------------------------------------------------------------------------------------


def checked(url: str, *arguments: str, **environ: str) -> tuple[int, dict[str, list[tuple[str, str]]]]:
    """Exit code, and status and text of each finding by what was looked at; text and JSON agree."""
    environ = {"DATABASE_URL": url, "API_KEY": KEY, "AVAPD_DATABASE_SECONDS": "5", "AVAPD_ENV": "test", **environ}
    ran = run("check", "--json", *arguments, **environ)
    found: dict[str, list[tuple[str, str]]] = {}
    for finding in json.loads(ran.out):
        found.setdefault(finding["check"], []).append((finding["status"], finding["found"]))
    assert ran.err == ""
    assert ran.code == int("fail" in {status for group in found.values() for status, _ in group})
    return ran.code, found


@pytest.fixture(scope="module")
def table(postgres_url: str) -> Iterator[Database]:
    database = Database(postgres_url)
    database.insert(ROWS)
    yield database
    database.drop()


def test_check_of_a_good_database(table: Database) -> None:
    """Exit 0: settings, files, database, table, role, bytecode, rows and memory are looked at, and fine."""
    code, found = checked(table.reader_url, AVAPD_WORKERS="1")
    assert code == 0
    assert set(found) == {"settings", "open files", "database", "table", "role", "avap_bytecode", "rows", "memory"}
    assert found["role"] == [("ok", "avapd_reader is read-only")]
    assert found["table"] == [("ok", "obex_dapl_functions has id, name, interface, type, code")]
    assert found["rows"][0][1].startswith("3 rows, 3 definitions, ")
    assert "1 workers" in found["memory"][0][1]


def test_check_as_text_is_a_table(table: Database) -> None:
    """The same for people: WARN and FAIL stand out, nothing on stderr, no secret, no escape."""
    url = table.reader_url.replace("avapd_reader@", "avapd_reader:canary-password@")
    settings = {"API_KEY": "canary-key-0123456789", "SIGNING_KEY": "canary-signing", "AVAPD_ENV": "test"}
    ran = run("check", DATABASE_URL=url, **settings)
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"^role +ok +avapd_reader is read-only$", ran.out, re.MULTILINE)
    assert "canary" not in ran.out
    assert "\x1b" not in ran.out


def test_check_warns_of_a_superuser_and_of_a_writer(table: Database) -> None:
    """WARN, exit 0: it would run."""
    code, found = checked(table.url)
    assert (code, found["role"][0][0]) == (0, "warn")
    assert "is a superuser" in found["role"][0][1]
    table.execute("GRANT INSERT, DELETE ON obex_dapl_functions TO avapd_reader")
    try:
        _, found = checked(table.reader_url)
    finally:
        table.execute("REVOKE INSERT, DELETE ON obex_dapl_functions FROM avapd_reader")
    assert found["role"][0][0] == "warn"
    assert "may INSERT, DELETE" in found["role"][0][1]


def test_check_of_doubled_and_incomplete_rows(postgres_url: str) -> None:
    """WARN with counts, and with the doubled names, made harmless."""
    database = Database(postgres_url)
    name = "twice\x1b[31m\n"
    database.insert(
        [(name, None, None, "x")] * 3 + [(None, None, None, "x"), ("", None, None, "x"), ("a", None, None, None)]
    )
    code, found = checked(database.reader_url)
    text = run("check", DATABASE_URL=database.reader_url, API_KEY=KEY, AVAPD_ENV="test").out
    database.drop()
    assert code == 0
    rows = found["rows"]
    assert rows[0] == ("ok", rows[0][1])
    assert rows[0][1].startswith("6 rows, 1 definitions, ")
    assert {("warn", "2 x no name"), ("warn", "1 x no code"), ("warn", "2 x duplicate name")} <= set(rows)
    assert any(status == "warn" and "twice" in line for status, line in rows)
    assert "\x1b" not in text


def test_check_names_what_would_not_be_served(database: Database) -> None:
    """What validation holds back is a WARN; a table of which nothing would be served fails."""
    broken = ("broken\x1b", "[]", "function", "x =")
    database.insert([broken, ("odd", "{}", "function", "x = 1"), ("sound", "[]", "function", "x = 1")])
    code, found = checked(database.reader_url)
    (line,) = [text for status, text in found["rows"] if status == "warn"]
    assert code == 0
    assert line.startswith("2 definitions of 3 fail validation and would not be served: ")
    assert "line 1: invalid syntax" in line
    assert "not an array of objects" in line
    assert "\x1b" not in line
    database.execute("DELETE FROM obex_dapl_functions WHERE name = 'sound'")
    assert checked(database.reader_url)[0] == 1
    assert checked(database.reader_url, AVAPD_CODE_GRAMMAR="off", AVAPD_CHECK_INTERFACE="off")[0] == 0


@pytest.mark.parametrize(
    ("sql", "check", "text"),
    [
        ("DROP TABLE obex_dapl_functions", "table", "obex_dapl_functions does not exist"),
        ("ALTER TABLE obex_dapl_functions DROP COLUMN code", "table", "lacks: code"),
        ("ALTER TABLE obex_dapl_functions DROP COLUMN name, DROP COLUMN type", "table", "lacks: name, type"),
        ("ALTER TABLE obex_dapl_functions ALTER COLUMN code TYPE integer USING 1", "rows", "integer"),
        ("ALTER TABLE obex_dapl_functions ALTER COLUMN code TYPE bytea USING 'x'", "rows", "code"),
        ("ALTER TABLE obex_dapl_functions ALTER COLUMN name TYPE json USING '1'", "rows", "name"),
        ("REVOKE SELECT ON obex_dapl_functions FROM avapd_reader", "role", "may not SELECT"),
        ("ALTER TABLE obex_dapl_functions RENAME TO elsewhere", "table", "does not exist"),
        ("REVOKE USAGE ON SCHEMA public FROM PUBLIC", "database", "permission denied"),
    ],
    ids=[
        "no table",
        "no code",
        "no name and type",
        "integer code",
        "bytea code",
        "json name",
        "no right",
        "renamed",
        "no schema",
    ],
)
def test_check_fails_where_a_start_would(postgres_url: str, sql: str, check: str, text: str) -> None:
    """FAIL and exit 1, naming the thing that is wrong."""
    database = Database(postgres_url)
    database.insert([("a", None, None, None)])
    database.execute(sql)
    code, found = checked(database.reader_url)
    database.drop()
    assert code == 1
    failures = [(name, line) for name, group in found.items() for status, line in group if status == "fail"]
    assert len(failures) == 1
    assert failures[0][0] == check
    assert text in failures[0][1]


def test_check_without_bytecode_table(postgres_url: str) -> None:
    """It is optional: exit 0, and the report says that packages are made at load."""
    database = Database(postgres_url)
    database.execute("DROP TABLE avap_bytecode")
    code, found = checked(database.reader_url, SIGNING_KEY="signing-key-0123456789")
    database.drop()
    assert code == 0
    assert found["avap_bytecode"][0] == ("ok", "is absent or not readable; packages are made at load")
    assert found["rows"][0][0] == "warn"  # an empty table


@pytest.mark.parametrize(
    "url",
    [
        NOWHERE,
        "postgresql://avapd_reader:canary-password@no-such-host.invalid/none",
        "postgresql://no_such_role:canary-password@{host}",
        "postgresql://avapd_reader:canary-password@{no_database}",
    ],
    ids=["refused", "no host", "no role", "no database"],
)
def test_check_of_an_unreachable_database(table: Database, url: str) -> None:
    """FAIL of `database` with a reason and a hint, exit 1, and no password."""
    place = table.url.split("@", 1)[1]
    url = url.format(host=place, no_database=place.replace(table.name, "no_such_database"))
    code, found = checked(url)
    assert code == 1
    status, text = found["database"][0]
    assert status == "fail"
    assert "; " in text
    assert "canary" not in text


def test_check_does_the_arithmetic_of_memory(table: Database) -> None:
    """More workers need more; what the host has is named."""

    def needed(workers: int) -> float:
        _, found = checked(table.reader_url, AVAPD_WORKERS=str(workers))
        line = found["memory"][0][1]
        match = re.fullmatch(
            rf"([\d.]+) MiB needed at the peak for {workers} workers, "
            r"the (?:cgroup limit|host's memory) is [\d.]+ MiB.*",
            line,
        )
        assert match, line
        return float(match[1])

    assert needed(8) - needed(2) > 6 * 10


def test_check_counts_the_table_against_the_limits(table: Database) -> None:
    """A table above AVAPD_MAX_CATALOG_BYTES and a row above AVAPD_MAX_DEFINITION_BYTES are told before the start."""
    table.insert([("big", None, None, "x" * 5000)])
    try:
        code, found = checked(table.reader_url, AVAPD_MAX_DEFINITION_BYTES="4096")
        assert (code, ("warn", "1 x too large") in found["rows"]) == (0, True)
        code, found = checked(table.reader_url, "--max-catalog-bytes", "4096")
        assert (code, found["rows"][0][0]) == (1, "fail")
        assert "the maximum is 4096" in found["rows"][0][1]
    finally:
        table.execute("DELETE FROM obex_dapl_functions WHERE name = 'big'")


def test_check_with_bad_settings_is_78() -> None:
    """As for the start: every problem on stderr."""
    ran = run("check", PORT="0")
    assert (ran.code, ran.out) == (78, "")
    assert all(name in ran.err for name in ("PORT", "DATABASE_URL", "API_KEY"))


# --- serve that does not start ------------------------------------------------------------------------------


# An observer inside the process (PEP 578): tells each process and each bound socket, changes nothing.
OBSERVER = """
import sys
from avapd.cli import main
events = {"subprocess.Popen", "os.fork", "os.exec", "os.posix_spawn", "socket.bind", "socket.connect"}
sys.addaudithook(lambda event, _: sys.stderr.write(f"AUDIT {event}\\n") if event in events else None)
main()
"""
WATCHED = (sys.executable, "-P", "-c", OBSERVER)
BAD_SETTINGS = {
    "DATABASE_URL": "postgresql://reader:canary-password@host:canary-port/avap",
    "API_KEY": "canary-key",
    "SIGNING_KEY": "canary-signing",
    "SIGNING_KEY_FILE": "/canary-file",
    "PORT": "99999",
    "UV_THREADPOOL_SIZE": "many",
    "AVAPD_ENV": "prod",
    "AVAPD_WORKERS": "0",
    "AVAPD_REFRESH_SECONDS": "-1",
    "AVAPD_ADMIN_PORT": "9464.5",
    "AVAPD_ENGINE": "nginx",
    "AVAPD_DRAIN_SECONDS": "1e3",
    "AVAPD_DATABASE_SCHEMA": 'pub"lic',
    "AVAPD_LOG_LEVEL": "LOUD",
    "AVAPD_MAX_ANSWER_BYTES": "32M",
    "AVAPD_LIMIT_STREAMS": "\u0661\u0660",  # digits, but not of ASCII
}


def test_bad_settings_are_told_all_at_once() -> None:
    """Exit 78, one line for each, no value of a secret, and neither a process nor a socket was made."""
    ran = run("serve", command=WATCHED, **BAD_SETTINGS)
    assert ran.code == 78
    assert "AUDIT" not in ran.err
    for name in BAD_SETTINGS:
        assert re.search(rf"^avapd: {name.removesuffix('_FILE')}\b", ran.err, re.MULTILINE), name
    assert ran.err.count("\n") == len(BAD_SETTINGS) - 1  # SIGNING_KEY is set twice, which is one problem
    assert not re.search("canary-(password|port|key|signing)", ran.err + ran.out)


def test_missing_settings_are_named() -> None:
    """Exit 78 for an empty environment, and for variables that are set to nothing."""
    for environ in ({}, {"DATABASE_URL": "", "API_KEY": ""}):
        ran = run("serve", command=WATCHED, **environ)
        assert ran.code == 78
        assert ran.err.splitlines() == [
            "avapd: DATABASE_URL (or DATABASE_URL_FILE) is required and not set",
            "avapd: API_KEY (or API_KEY_FILE) is required and not set",
            f"avapd: {UNGUARDED}",
        ]


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"API_KEY": "short-canary"}, "API_KEY"),
        ({"API_KEY": f"{KEY},short-canary"}, "API_KEY"),
        ({"API_KEY": "canary with blanks in it"}, "API_KEY"),
        ({"API_KEY": "canary\n0123456789abcdef"}, "API_KEY"),
        ({"API_KEY": "", "API_KEY_FILE": "/canary-nothing"}, "API_KEY"),
        ({"DATABASE_URL": "mysql://canary@host/db"}, "DATABASE_URL"),
        ({"DATABASE_URL": "canary"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql:///canary"}, "DATABASE_URL"),
        ({"PORT": "9464"}, "PORT and AVAPD_ADMIN_PORT"),
        ({"AVAPD_DRAIN_SECONDS": "1", "AVAPD_PRE_DRAIN_SECONDS": "2"}, "AVAPD_PRE_DRAIN_SECONDS"),
        ({"NODE_ENV": "canary"}, "NODE_ENV"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_one_bad_setting_is_enough(environ: dict[str, str], named: str) -> None:
    """Exit 78, naming the variable that was set and not its value."""
    ran = run("serve", command=WATCHED, **{"DATABASE_URL": NOWHERE, "API_KEY": KEY, "AVAPD_INSECURE": "1", **environ})
    assert ran.code == 78, ran
    assert named in ran.err
    assert "AUDIT" not in ran.err
    assert not re.search("canary(?!-nothing)", ran.err + ran.out)


def test_flags_win_over_variables(table: Database) -> None:
    """Each setting has a flag; a secret's flag is the path of a file, so that it never stands in the process list."""
    ran = run("serve", "--port", "70000", DATABASE_URL=NOWHERE, API_KEY=KEY, PORT="50051")
    assert (ran.code, "PORT" in ran.err) == (78, True)
    ran = run("serve", "--api-key", KEY)
    assert (ran.code, KEY in ran.err) == (2, False)
    text = run("serve", "--help").out
    for setting in config.settings().values():
        assert re.search(rf"^  {setting.flag} (PATH|VALUE)", text, re.MULTILINE), setting.flag


class Ended(NamedTuple):
    """How a server ended that could not start: exit code, log, and its last FATAL event."""

    code: int
    log: str
    fatal: dict[str, Any]


def ended(url: str, *arguments: str, **env: str) -> Ended:
    """Run a server that must end by itself, and see that nothing is left of it."""
    with Server(url, *arguments, command=("setsid",), env={"AVAPD_WORKERS": "2", **env}) as server:
        wait_until(lambda: server.process.poll() is not None or server.events("SERVING"), 20)
        code = server.process.poll()
        assert code is not None, "it serves"
        wait_until(lambda: not of_session(server.process.pid))
        assert "Traceback" not in server.log
        fatal = [event for event in server.events() if event["level"] == "FATAL"]
        assert len(fatal) == 1, server.log
        return Ended(code, server.log, fatal[0])


def of_session(leader: int) -> list[int]:
    """The processes of a session, whoever their parents are now."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == leader and psutil.pid_exists(pid):
                found.append(pid)
    return found


def test_require_database_ends_with_69() -> None:
    """Without a database `serve --require-database` gives up: one FATAL line with a hint, nothing left running."""
    code, log, fatal = ended(NOWHERE, "--require-database")
    assert code == 69
    assert "Connect" in fatal["error"] or "refused" in fatal["error"]
    assert "DATABASE_URL" in fatal["hint"]
    assert '"SERVING"' not in log


def test_require_database_asks_for_the_table_too(postgres_url: str) -> None:
    """A database without the table is no source either."""
    database = Database(postgres_url, tables=False)
    code, _, fatal = ended(database.url, "--require-database")
    database.drop()
    assert code == 69
    assert "obex_dapl_functions" in fatal["error"]


@pytest.mark.parametrize("setting", ["PORT", "AVAPD_ADMIN_PORT"])
def test_a_port_in_use_ends_with_69(table: Database, setting: str) -> None:
    """The message names the port; nothing is left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, fatal = ended(table.reader_url, **{setting: str(port)})
    assert code == 69
    assert str(port) in fatal["error"]
    assert "another process" in fatal["hint"]


def test_an_address_that_is_not_ours_ends_with_69(table: Database) -> None:
    """An unknown name, or an address of another host."""
    for host in ("no-such-host.invalid", "192.0.2.1"):
        code, _, fatal = ended(table.reader_url, AVAPD_HOST=host)
        assert code == 69
        assert host in fatal["error"]


def test_a_port_of_another_avapd_is_in_use(table: Database, served: Server) -> None:
    """SO_REUSEPORT must not let a second server take half of the first one's clients without a word."""
    code, _, fatal = ended(table.reader_url, PORT=str(served.port))
    assert code == 69
    assert str(served.port) in fatal["error"]


def test_a_port_can_be_had_again_at_once(table: Database) -> None:
    """A restart finds the port free, whatever connections the last server had."""
    port = str(free_port())
    for _ in range(2):
        with Server(table.reader_url, env={"PORT": port, "AVAPD_WORKERS": "1"}) as server:
            server.port = int(port)
            with server.wait_serving().calls() as calls:
                assert calls.get("addVar").code == 0
                server.process.kill()
                server.wait_end()
