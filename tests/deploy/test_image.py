"""The Dockerfile, built and run as production would; needs AVAPD_TEST_IMAGE=1, root and Debian's container tools."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from clients.tools import program_in, wheels
from deploy.containers import IMAGE, ROOT, Engine, environment
from support.calls import Calls
from support.server import KEY, free_port
from support.waiting import wait_until

import avapd
from avapd.demo.postgres import Postgres

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        os.environ.get("AVAPD_TEST_IMAGE") != "1", reason="AVAPD_TEST_IMAGE=1 builds and runs the image"
    ),
]
NAME, DRAIN_SECONDS, KEPT = "avapd", 10, "/var/lib/avapd"
TABLES = ROOT / "avapd" / "demo" / "tables.sql"
MIB = 1 << 20
# As deploy/README.md says, and harder: where a shell would be there is nothing to run.
PRODUCTION = (
    "--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--pids-limit=128",
    "--memory=256m", "--cpus=1", "--network=host",
    "--volume=/dev/null:/usr/bin/dash:ro", "--volume=/dev/null:/usr/bin/bash:ro",
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """With the image built."""
    made = Engine(tmp_path_factory.mktemp("containers"))
    try:
        made.make_base()
        made.build(VERSION=avapd.__version__, REVISION="0123abc")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """Reachable over TCP, with one command."""
    with Postgres(port=free_port()) as made:
        made.psql(TABLES.read_text(encoding="utf-8"))
        made.psql("INSERT INTO obex_dapl_functions (name, code) VALUES ('si', 'x = 1')")
        yield made


class Container:
    """A running avapd, as production runs it."""

    def __init__(self, engine: Engine, postgres: Postgres, *options: str) -> None:
        self.port, self._engine = free_port(), engine
        self.admin_port = free_port()
        values = environment(
            DATABASE_URL=f"postgresql://avapd_reader@127.0.0.1:{postgres.port}/avap", API_KEY=KEY, PORT=self.port,
            AVAPD_TARGET=f"127.0.0.1:{self.port}", AVAPD_ADMIN_PORT=self.admin_port, AVAPD_HOST="127.0.0.1",
            AVAPD_INSECURE="1", AVAPD_REFRESH_SECONDS="0.5",
            AVAPD_CANARY_SECONDS="0", AVAPD_DRAIN_SECONDS=DRAIN_SECONDS,
        )  # fmt: skip
        engine.podman("run", "--detach", f"--name={NAME}", *options, *PRODUCTION, *values, IMAGE)
        self.calls = Calls(f"127.0.0.1:{self.port}", KEY)

    def inspect(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._engine.podman("inspect", NAME))[0]
        return found

    def status(self) -> dict[str, str]:
        """/proc/PID/status of PID 1."""
        text = Path(f"/proc/{self.inspect()['State']['Pid']}/status").read_text(encoding="utf-8")
        return dict(re.findall(r"^(\w+):\s+(.*)$", text, re.MULTILINE))

    def serves(self) -> bool:
        if not self.inspect()["State"]["Running"]:
            raise RuntimeError(self._engine.podman("logs", NAME))
        return self.calls.health() == "SERVING"

    def end(self) -> None:
        self.calls.close()
        self._engine.podman("rm", "--force", "--time=0", NAME)


@pytest.fixture
def container(engine: Engine, postgres: Postgres) -> Iterator[Container]:
    made = Container(engine, postgres)
    try:
        wait_until(made.serves, 60)
        yield made
    finally:
        made.end()


def test_the_image_says_what_it_is(engine: Engine) -> None:
    """Numeric user, entry point and health check without a shell, SIGTERM, version and revision; no pip."""
    config = json.loads(engine.run("buildah", "inspect", "--type=image", IMAGE))["Docker"]["config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["avapd", "serve"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "avapd", "health", "--timeout", "4"]
    assert config["Labels"]["org.opencontainers.image.version"] == avapd.__version__
    assert config["Labels"]["org.opencontainers.image.revision"] == "0123abc"
    look = "from importlib.util import find_spec; import os; print(find_spec('pip'), os.listdir('/opt/avapd/bin'))"
    found = engine.podman("run", "--rm", "--network=none", "--entrypoint=python", IMAGE, "-c", look)
    assert found.startswith("None ")
    assert "'avapd'" in found
    assert "'pip" not in found


def test_it_serves_as_production_runs_it(container: Container, engine: Engine, postgres: Postgres) -> None:
    """PID 1, without a right, a writable file or a shell, within its limits: calls, changes and health are right."""
    assert container.calls.command("si").code == b"x = 1"
    postgres.psql("UPDATE obex_dapl_functions SET code = 'x = 2'")
    wait_until(lambda: container.calls.command("si").code == b"x = 2", 20)
    engine.podman("healthcheck", "run", NAME)
    status = container.status()
    assert status["NSpid"].split()[-1] == "1"
    assert status["Uid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    limits = container.inspect()["HostConfig"]
    assert (limits["Memory"], limits["PidsLimit"], limits["ReadonlyRootfs"]) == (256 * MIB, 128, True)
    assert engine.podman("diff", NAME) in {"", "C /etc"}  # podman's own hosts file
    assert "python" in engine.podman("top", NAME, "args")


def test_workers_follow_the_cpu_limit(container: Container) -> None:
    """One CPU is one worker, however many the machine has."""
    pid = container.inspect()["State"]["Pid"]
    commands = [child.cmdline() for child in psutil.Process(pid).children()]  # the one that validates is no worker
    assert sum("avapd.data" in command for command in commands) == 1


def test_it_stops_in_time(container: Container, engine: Engine) -> None:
    """`stop` is SIGTERM to PID 1, which ends with 0 long before it would be killed."""
    assert container.calls.get("si").code == 0
    began = time.monotonic()
    engine.podman("stop", f"--time={DRAIN_SECONDS + 2}", NAME)
    assert time.monotonic() - began < DRAIN_SECONDS
    assert container.inspect()["State"]["ExitCode"] == 0
    assert not container.inspect()["State"]["OOMKilled"]


def test_the_image_gives_its_user_one_folder(engine: Engine) -> None:
    """What AVAPD_SNAPSHOT_DIR is set to, closed to others; nothing else in the image is the user's."""
    look = ("/", "-xdev", "-user", "10001", "-printf", "%m %p\\n")
    found = engine.podman("run", "--rm", "--user=0", "--network=none", "--entrypoint=find", IMAGE, *look)
    assert found == f"700 {KEPT}"


def test_decisions_outlive_the_container(engine: Engine, postgres: Postgres) -> None:
    """A new container on the same named volume, on a read-only root, is as frozen as the one before."""
    for number in range(2):
        made = Container(engine, postgres, f"--volume=decisions:{KEPT}", f"--env=AVAPD_SNAPSHOT_DIR={KEPT}")
        try:
            wait_until(made.serves, 60)
            if number == 0:
                engine.podman("exec", NAME, "avapd", "freeze", "--reason", "drill")
            with urllib.request.urlopen(f"http://127.0.0.1:{made.admin_port}/status", timeout=5) as answer:
                assert json.load(answer)["frozen"], number
        finally:
            made.end()


def test_its_bill_of_materials_is_the_lock(engine: Engine, tmp_path: Path) -> None:
    """Every Python distribution that syft finds is avapd itself or of the version that requirements.lock names."""
    installed = wheels(Path(__file__).parent / "sbom" / "requirements.txt")
    engine.run("skopeo", "copy", "--quiet", f"containers-storage:{IMAGE}", f"oci:{tmp_path}/oci:avapd")
    made = tmp_path / "sbom.json"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), "HOME": str(tmp_path)}
    scan: list[str | Path] = [
        *program_in(installed, "syft"),
        "scan",
        f"oci-dir:{tmp_path}/oci",
        "-q",
        "-o",
        f"cyclonedx-json={made}",
    ]
    subprocess.run(scan, env={**env, "SYFT_CHECK_FOR_APP_UPDATE": "false"}, check=True)
    parts = [part for part in json.loads(made.read_text(encoding="utf-8"))["components"] if "purl" in part]
    python = {part["name"]: part["version"] for part in parts if part["purl"].startswith("pkg:pypi/")}
    assert python.pop("avapd") == avapd.__version__
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert python.items() <= set(re.findall(r"^([\w.-]+)==([\w.+-]+)", locked, re.MULTILINE))
    assert {"grpcio", "protobuf", "asyncpg"} <= python.keys()
    assert any(part["purl"].startswith("pkg:deb/") for part in parts)
