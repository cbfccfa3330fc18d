"""The guide of deploy/: what it names exists, what it reckons is what avapd reckons, its drill goes as written."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import trustme
from clients import tools
from deploy.guide import DEPLOY, PAGES, Step, anchors, code, commands, sections, steps, text
from deploy.prometheus import MONITORING
from deploy.rules import alerts, rules
from support.calls import Calls
from support.certificates import Folder, chain
from support.database import Database
from support.server import KEY, Server
from support.waiting import wait_until

from avapd.cli import cli
from avapd.config import settings
from avapd.control.check import needed_memory
from avapd.demo.postgres import Postgres

pytestmark = pytest.mark.timeout(300)  # the first run installs a parser of PromQL

SIZING, OPERATIONS, DISASTERS = (DEPLOY / f"{name}.md" for name in ("sizing", "operations", "disasters"))
MIB = 1 << 20
# Told where there is a key that ends; tests/system has it.
SELDOM = {"avap_key_expires_timestamp_seconds"}
# No metric: a table.
TABLES = {"avap_bytecode"}


def page_id(page: Path) -> str:
    return str(page.relative_to(DEPLOY))


def commands_of(group: click.Group) -> Iterator[click.Command]:
    """Every command, also of groups in it."""
    for command in group.commands.values():
        yield from commands_of(command) if isinstance(command, click.Group) else (command,)


# --- what it names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link to a file that exists, each anchor to a heading of its page."""
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", text(page)):
        other = (page.parent / target) if target else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), f"{target}#{anchor}"


@pytest.mark.parametrize("name", ["README", "sizing", "operations", "disasters"])
def test_a_table_of_contents_has_every_section(name: str) -> None:
    """In order; that of README.md has those of the whole guide."""
    found = re.findall(r"^\s*- \[(.+?)\]\((?:\w+\.md)?#", text(DEPLOY / f"{name}.md"), flags=re.MULTILINE)
    pages = (DEPLOY / "README.md", SIZING, OPERATIONS, DISASTERS) if name == "README" else (DEPLOY / f"{name}.md",)
    assert found == [head for page in pages for head in sections(page)]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_exist(page: Path) -> None:
    """Each has the arguments and options that the command line knows; one that is only mentioned may go without."""
    for name, *arguments in commands(page):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, name
        with contextlib.suppress(*() if arguments else (click.MissingParameter,)):
            command.make_context(name, arguments)


def test_a_command_that_does_not_exist_would_be_found(tmp_path: Path) -> None:
    """Wherever it stands, and by its name or an option."""
    page = tmp_path / "page.md"
    page.write_text("Try `avapd undo`, or\n\n    kubectl exec pod -- avapd history --all | less  # all of them\n")
    assert list(commands(page)) == [["undo"], ["history", "--all"]]


def test_settings_exist() -> None:
    """Every variable that a page or a rule names, of the server or of the commands."""
    known = {variable for setting in settings().values() for variable in setting.variables}
    for command in commands_of(cli):
        known |= {str(option.envvar) for option in command.params if option.envvar}
    for page in (*PAGES, MONITORING / "alerts.yml"):
        named = set(re.findall(r"\bAVAPD_\w*[A-Z]\b(?!…)", text(page)))
        assert named <= known, page


def test_alerts_exist() -> None:
    """Every one that a page names."""
    for page in PAGES:
        assert set(re.findall(r"\bAvap[A-Z]\w+(?!…)\b", text(page))) <= {str(rule["alert"]) for rule in alerts()}, page


def test_a_setting_that_is_named_with_its_default_has_it() -> None:
    """`NAME` (value): what stands in parentheses right behind it."""
    known = {variable: setting.default_text for setting in settings().values() for variable in setting.variables}
    found = [pair for page in PAGES for pair in re.findall(r"`(AVAPD_\w+)` \(([\d.]+)(?: s)?\)", text(page))]
    assert found
    assert [(name, value) for name, value in found if float(value) != float(known[name])] == []


# --- what it reckons -----------------------------------------------------------------------------------------------


def reckoned(catalog: float, workers: int, gzip: float) -> int:
    """The formula of sizing.md, with sizes in bytes."""
    (formula,) = re.findall(r"^    needed = (.+)$", text(SIZING), flags=re.MULTILINE)
    formula = (
        formula.replace("MiB", f"* {MIB}").replace("\N{MULTIPLICATION SIGN}", "*").replace("AVAPD_WORKERS", "workers")
    )
    return int(eval(formula, {}, {"catalog": catalog, "workers": workers, "gzip": gzip}))


@pytest.mark.parametrize("catalog", [0, 10 * MIB, 32 * MIB, 33 * MIB, 1000 * MIB])
@pytest.mark.parametrize("workers", [1, 4, 16])
def test_the_formula_of_memory_is_the_one_of_avapd(catalog: int, workers: int) -> None:
    """With a catalog that may go out as one answer, and so lie there in gzip, and with one that may not."""
    most = int(settings()["max_answer_bytes"].default_text)
    gzip = catalog if catalog <= most else 0
    assert reckoned(catalog, workers, gzip) == needed_memory(catalog, workers, most)


def test_the_table_of_memory_is_what_the_formula_gives() -> None:
    """Each cell is the limit under which `avapd check` finds the need at 70 %, rounded up to 64 MiB."""
    lines = re.findall(r"^\| (\d+) MiB \| (.+) \|$", text(SIZING), flags=re.MULTILINE)
    workers = re.findall(r"(\d+) workers?", text(SIZING).split("| catalog |")[1].splitlines()[0])
    assert len(lines) > 3
    for size, cells in lines:
        needs = [needed_memory(int(size) * MIB, int(count), 32 * MIB) / 0.7 / MIB for count in workers]
        assert cells.split(" | ") == [f"{-(-need // 64) * 64:,.0f} MiB" for need in needs], size


def test_the_room_behind_one_address_is_what_its_formula_gives() -> None:
    """The share of a worker at which the formula meets the default, in tens, and four of them, in hundreds."""
    limit = int(settings()["limit_address_connections"].default_text)
    share = max(share for share in range(limit) if share + 3 * math.sqrt(share) < limit) // 10 * 10
    found = re.search(r"With four workers that is a share of ([\d,]+), about ([\d,]+) connections", text(SIZING))
    assert found
    assert found.groups() == (f"{share:,}", f"{4 * share // 100 * 100:,}")


# --- what it measures ----------------------------------------------------------------------------------------------


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module promql_parser."""
    monkeypatch.syspath_prepend(str(tools.wheels(Path(__file__).parent / "monitoring" / "requirements.txt")))
    return importlib.import_module("promql_parser")


def queries() -> list[str]:
    """What stands in blocks of PromQL."""
    found = re.findall(r"^ *```promql\n(.+?)^ *```", "".join(map(text, PAGES)), flags=re.MULTILINE | re.DOTALL)
    return [query for block in found for query in re.sub(r"^#.*\n", "", block, flags=re.MULTILINE).split("\n\n")]


def test_every_query_is_valid(parser: Any) -> None:
    """One that lacks a parenthesis is not."""
    with pytest.raises(ValueError, match="paren"):
        parser.parse("sum(rate(avap_requests_total[5m])")
    assert len(queries()) > 5
    for query in queries():
        parser.parse(query)


def test_the_objectives_are_those_of_the_alerts() -> None:
    """One call in ten thousand, one millisecond: the numbers in the queries are those in alerts.yml."""
    watched = {rule["alert"]: rule["expr"] for rule in alerts()}
    assert "14.4 * 0.0001" in watched["AvapErrorBudgetBurnFast"]
    assert watched["AvapLatencyHigh"].strip().endswith("> 0.001")
    slos = sections(OPERATIONS)["Service level objectives"]
    assert set(re.findall(r"/ (0\.\d+)$", slos, flags=re.MULTILINE)) == {"0.0001"}
    assert set(re.findall(r'le="([\d.]+)"', slos)) == {"0.001"}


# --- the drill -----------------------------------------------------------------------------------------------------


class Place:
    """Where the drill is performed: a PostgreSQL, an avapd on a small disk of its own, and a shell that finds both.

    As in production, with TLS and certificates of the clients.
    """

    def __init__(self, postgres: Postgres, folder: Path, disk: tuple[str, ...]) -> None:
        self.disk = disk
        self._folder = folder
        self._store = folder / "store"
        postgres.psql("CREATE DATABASE elsewhere")
        self.database = Database(postgres.url())
        self.database.insert_many(40, 50)
        spare = postgres.url().replace("/avap?", "/elsewhere?")
        etc = folder / "etc"
        etc.mkdir()
        (etc / "database-url").write_text(self.database.reader_url)
        (etc / "api-key").write_text(KEY)
        _expired(etc / "tls.crt")
        (folder / "tls").mkdir()
        self.certificates = certificates = Folder(folder / "tls", trustme.CA())
        shown = certificates.clients.issue_cert("client.example")
        (etc / "ca.crt").write_bytes(certificates.authority.cert_pem.bytes())
        (etc / "client.crt").write_bytes(chain(shown))
        (etc / "client.key").write_bytes(shown.private_key_pem.bytes())
        self._env = {
            "DATABASE_URL": "", "DATABASE_URL_FILE": str(etc / "database-url"), "AVAPD_REFRESH_SECONDS": "3600",
            "AVAPD_SNAPSHOT_DIR": str(self._store), **certificates.settings(mutual=True),
        }  # fmt: skip
        self.server = Server("", command=disk, env=self._env)
        self.shell = {
            "PATH": f"{Path(sys.executable).parent}:{postgres.bin}:{os.environ['PATH']}", "PORT": str(self.server.port),
            "ADMIN": f"http://127.0.0.1:{self.server.admin_port}", "REPLICAS": f"127.0.0.1:{self.server.admin_port}",
            "AVAPD_TARGET": f"127.0.0.1:{self.server.port}", "API_KEY_FILE": str(etc / "api-key"),
            "AVAPD_TARGET_CA_FILE": str(etc / "ca.crt"), "AVAPD_TARGET_NAME": "localhost",
            "AVAPD_TARGET_CERT_FILE": str(etc / "client.crt"), "AVAPD_TARGET_KEY_FILE": str(etc / "client.key"),
            "OWNER": self.database.url, "READER": self.database.reader_url,
            "SPARE": spare, "SPARE_READER": spare.replace("//postgres@", "//avapd_reader@"),
        }  # fmt: skip

    def restart(self) -> None:
        """What systemd does: the end is waited for, the start is not."""
        assert self.server.stop() == 0
        self._env |= {"PORT": str(self.server.port), "AVAPD_ADMIN_PORT": str(self.server.admin_port)}
        self.server.__exit__()
        self.server = Server("", command=self.disk, env=self._env)

    def perform(self, section: str) -> None:
        """Every step of a section, each with what must be seen."""
        for step in steps(section):
            self.perform_step(step)

    def perform_step(self, step: Step) -> None:
        """An order is given once; a look is repeated until it shows what it must."""
        if step.command == "systemctl restart avapd":
            self.restart()
        elif re.match(r"avapd (get|health|fleet|quarantine)|curl|journalctl|ls", step.command):
            wait_until(lambda: self._seen(step), 20, step.command)
        else:
            assert self._seen(step)

    def _seen(self, step: Step) -> bool:
        log = shlex.quote(str(self.server.log_file))
        command = step.command
        places = {"/etc/avapd": self._folder / "etc", "/var/lib/avapd": self._store, "deploy/": f"{DEPLOY}/"}
        for path, ours in places.items():
            command = command.replace(path, str(ours))
        done = subprocess.run(
            [*self.disk, "bash", "-c", f"journalctl() {{ cat {log}; }}\n{command}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self._folder / "here",
            env=self.shell, text=True, timeout=60, check=False,
        )  # fmt: skip
        right = step.matches(done.stdout) and (done.returncode == 0 or bool(step.seen))
        assert right, f"$ {step.command}\n{done.stdout}\nexit {done.returncode}, wanted: {step.seen}"
        return right

    def kept(self) -> bool:
        """Whether the disk holds the generation that is served: it is written in the background."""
        command = [*self.disk, "ls", str(self._store)]
        names = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
        return f"catalog-{self.server.status()['generation']:020}" in names

    def close(self) -> None:
        self.server.__exit__()


def _expired(path: Path) -> None:
    """A certificate of yesterday."""
    made = trustme.CA().issue_cert("avapd.internal", not_after=datetime.now(UTC) - timedelta(days=1))
    made.cert_chain_pems[0].write_to_path(path)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A folder, and a command that runs others where 512 KiB of a disk are in it; empty when that is not allowed."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "store").mkdir()
    (folder / "here").mkdir()
    mounted = f"mount -t tmpfs -o size=512k none {folder}/store && echo done && exec cat"
    root = os.geteuid() == 0
    holder = subprocess.Popen(
        ["unshare", "--mount", *(() if root else ("--map-root-user",)), "sh", "-c", mounted],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert holder.stdout is not None
    rights = () if root else ("--user", "--preserve-credentials")
    entered = ("nsenter", f"--target={holder.pid}", "--mount", *rights)
    yield folder, entered if holder.stdout.readline() else ()
    holder.communicate()


@pytest.fixture(scope="module")
def place(disk: tuple[Path, tuple[str, ...]]) -> Iterator[Place]:
    """Where the drill has begun."""
    for program in ("bash", "curl", "openssl"):
        tools.installed(program)
    with Postgres() as postgres, contextlib.closing(Place(postgres, *disk)) as made:
        made.server.wait_serving()
        before, _ = sections(DISASTERS)["The drill"].split("Afterwards:")
        made.perform(before)
        yield made


def test_what_must_be_seen_is_looked_for() -> None:
    """Line by line, `…` for what differs; a line that is missing, or one too many, is not what must be seen."""
    (step,) = steps("    $ avapd unfreeze | cat\n    …\n    frozen        n…\n\nText")
    assert step == Step("avapd unfreeze | cat", ("…", "frozen        n…"))
    assert step.matches("generation 1\nfrozen        no\n")
    assert step.matches("frozen        no")
    assert not step.matches("frozen        yes\n")
    assert not step.matches("frozen        no\ndenied\n")
    assert Step("true", ()).matches("")
    assert not Step("true", ()).matches("something\n")


def test_the_shell_of_the_drill_has_what_the_page_exports(place: Place) -> None:
    """And nothing else, but where programs are and which avapd is meant."""
    exported = re.findall(r"(\w+)=", "".join(line for line in code(DISASTERS) if line.startswith("export ")))
    assert sorted(place.shell) == sorted([*exported, "PATH", "PORT"])


@pytest.mark.parametrize("section", [name for name in sections(DISASTERS) if name != "The drill"])
def test_a_disaster_goes_as_written(section: str, place: Place) -> None:
    """Each command works, each observation is made, and all is as before: the hash, on disk too, nothing frozen."""
    if section == "Full disk" and not place.disk:
        pytest.skip("this user may not have a mount namespace (unshare --mount)")
    before = place.server.status()["version_hash"]
    place.perform(sections(DISASTERS)[section])
    place.server.wait_served(lambda status: status["version_hash"] == before)
    status = place.server.status()
    assert (status["frozen"], status["denied"], status["refused"]) == (None, [], None)
    wait_until(place.kept, 20, "the disk holds what is served")


def test_the_metrics_that_are_named_exist(place: Place, parser: Any) -> None:
    """A running avapd tells each, with the labels that queries ask for, or a rule records it."""
    told = place.server.http("/metrics")[1]
    known = set(re.findall(r"^(\w+)(?:{.*})? ", told, flags=re.MULTILINE))
    known |= {rule["record"] for rule in rules() if "record" in rule}
    named = {name for page in PAGES for name in re.findall(r"\b(?:job:)?avap_\w+(?::\w+)?", text(page))}
    assert named - known - TABLES <= SELDOM
    wanted = {pair for query in queries() for pair in re.findall(r'\b(le|method|reason)="([^"]+)"', query)}
    assert wanted
    for label, value in wanted:
        assert f'{label}="{value}"' in told


def test_the_drill_ends_as_it_began(place: Place) -> None:
    """Its definition is gone, its files too, and every replica serves the same."""
    place.perform(sections(DISASTERS)["The drill"].split("Afterwards:")[1])
    credentials = place.certificates.credentials(place.certificates.clients)
    with Calls(f"127.0.0.1:{place.server.port}", KEY, credentials) as calls:
        assert calls.get("drill").code == 5
    assert place.server.metric("avap_cache_size") == 40
    assert not list((place._folder / "here").iterdir())
