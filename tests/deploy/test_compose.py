"""deploy/compose and deploy/swarm: valid, hardened, and of things that exist; the database that they make is served."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from clients.tools import installed, wheels
from deploy.guide import DEPLOY, text
from support.server import Server
from support.waiting import wait_until

from avapd import config
from avapd.cli import cli
from avapd.control.check import needed_memory
from avapd.demo.postgres import DATABASE, Postgres

pytestmark = pytest.mark.timeout(300)  # the first run installs the tools

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
STACK = ROOT / "deploy" / "swarm" / "stack.yml"
PUBLISH = STACK.with_name("publish.yml")
FILES = {"compose": COMPOSE / "compose.yaml", "swarm": STACK}
each = pytest.mark.parametrize("path", FILES.values(), ids=FILES.keys())


@pytest.fixture(scope="module")
def tools() -> Path:
    """A folder with the packages of compose/requirements.txt."""
    return wheels(Path(__file__).parent / "compose" / "requirements.txt")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """deploy/compose in a copy of what it mounts, with its secrets."""
    for part in ("deploy", "avapd/demo"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("secrets", ".env"))
    run(tmp_path / "deploy" / "compose" / "secrets.sh")
    return tmp_path / "deploy" / "compose"


def run(*command: str | Path, folder: Path | None = None, **env: str) -> str:
    """The output of a command that must do well, with nothing in its environment."""
    done = attempt(*command, folder=folder, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def attempt(*command: str | Path, folder: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], **env}
    return subprocess.run(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def stack(*files: Path) -> dict[str, Any]:
    """What Docker makes of files that are deployed together."""
    options = [word for file in files for word in ("-c", file)]
    made: dict[str, Any] = yaml.safe_load(run(installed("docker"), "stack", "config", *options))
    return made


def services(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]
    return found


def environment(path: Path) -> dict[str, str]:
    """What avapd is given, with the defaults of variables filled in."""
    pairs = services(path)["avapd"]["environment"].items()
    return {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)) for name, value in pairs}


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)s", text)
    assert found
    return float(found[1])


# --- what others say of the files ---------------------------------------------------------------------------------


def test_compose_takes_its_file(tools: Path, copy: Path) -> None:
    """Docker Compose itself: as it is, and with every variable of .env.example; an unknown key is refused."""
    compose = (tools / "bin" / "docker-compose", "-f", "compose.yaml", "config")
    plain = json.loads(run(*compose, "--format=json", folder=copy))
    (copy / ".env").write_text((copy / ".env.example").read_text(encoding="utf-8"))
    assert json.loads(run(*compose, "--format=json", folder=copy)) == plain
    text = (copy / "compose.yaml").read_text(encoding="utf-8")
    (copy / "compose.yaml").write_text(text.replace("stop_grace_period", "stop_grace"))
    assert "stop_grace" in attempt(*compose, "-q", folder=copy).stderr


def test_the_example_of_variables_names_every_one() -> None:
    """In .env.example, with the default that holds without it."""
    text = (COMPOSE / "compose.yaml").read_text(encoding="utf-8")
    lines = (COMPOSE / ".env.example").read_text(encoding="utf-8").splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text)) == example


@each
def test_the_schema_of_compose_allows_it(tools: Path, path: Path) -> None:
    """The specification's own, as check-jsonschema brings it."""
    schema = ("--builtin-schema", "vendor.compose-spec")
    run(sys.executable, "-m", "check_jsonschema", *schema, path, PYTHONPATH=str(tools))


def test_docker_takes_the_stack() -> None:
    """`docker stack config`, which refuses what it does not know."""
    assert stack(STACK)["services"].keys() == services(STACK).keys()


# --- what they promise --------------------------------------------------------------------------------------------


@each
def test_every_service_is_hardened_and_bounded(path: Path) -> None:
    """Read-only root, no capability, limits of CPU, memory and processes, a health check, a pinned image."""
    for name, service in services(path).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}, name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert re.search(r":(v?\d+[.\w-]*|\$\{TAG:-dev\})$", service["image"]), name
        if path.name == "compose.yaml":
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert all(port.startswith(("127.0.0.1:", "${BIND:-127.0.0.1}:")) for port in service.get("ports", [])), (
                name
            )


@each
def test_every_secret_is_a_file(path: Path) -> None:
    """Passwords and keys come by `_FILE`, from a secret that the service mounts; all that are declared are mounted."""
    mounted: set[str] = set()
    for name, service in services(path).items():
        values = service.get("environment", {})
        files = {value.removeprefix("/run/secrets/") for key, value in values.items() if key.endswith("_FILE")}
        assert files <= set(service.get("secrets", [])), name
        assert not [key for key in values if re.search(r"PASSWORD|KEY|_URL", key) and not key.endswith("_FILE")], name
        mounted |= set(service.get("secrets", []))
    assert mounted == yaml.safe_load(path.read_text(encoding="utf-8"))["secrets"].keys()


@each
def test_every_variable_of_avapd_is_a_setting(path: Path) -> None:
    """With a value that avapd takes."""
    given = environment(path)
    known = config.settings().values()
    names = {name for setting in known for name in setting.variables}
    files = {f"{setting.variables[0]}_FILE" for setting in known if setting.secret}
    assert given.keys() <= names | files
    secrets = {"DATABASE_URL": "postgresql://avapd_reader@postgres/avap", "API_KEY": "k" * 32}
    made = config.load({name: value for name, value in given.items() if name not in files} | secrets)
    assert made.environment == "production"
    assert made.admin_host == "0.0.0.0"
    limits = services(path)["avapd"]["deploy"]["resources"]["limits"]
    memory = int(limits["memory"].removesuffix("g")) << 30
    assert needed_memory(made.max_catalog_bytes, int(limits["cpus"]), made.max_answer_bytes) <= 0.7 * memory


@each
def test_decisions_outlive_the_container(path: Path) -> None:
    """The folder for them is a named volume, mounted over the one that the image gives to its user."""
    folder = environment(path)["AVAPD_SNAPSHOT_DIR"]
    (volume,) = services(path)["avapd"]["volumes"]
    assert volume == f"avapd:{folder}"
    assert "avapd" in yaml.safe_load(path.read_text(encoding="utf-8"))["volumes"]
    assert f"RUN install -d -o 10001 -g 10001 -m 0700 {folder}\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


@each
def test_a_stop_lasts_longer_than_the_drain(path: Path) -> None:
    """By five seconds at least, so that it is never cut off; ports are those that the image and avapd have."""
    service = services(path)["avapd"]
    defaults = {field.name: field.default for field in dataclasses.fields(config.Config)}
    drain = float(environment(path).get("AVAPD_DRAIN_SECONDS", str(defaults["drain_seconds"])))
    assert seconds(service["stop_grace_period"]) >= drain + 5
    assert service["ulimits"]["nofile"] == {"soft": 65536, "hard": 65536}
    exposed = re.search(r"^EXPOSE (.+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert exposed
    assert exposed[1].split() == [str(defaults["port"]), str(defaults["admin_port"])]
    assert all(exposed[1].split()[0] in port for port in service.get("ports", []))
    scraped = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text(encoding="utf-8"))
    assert scraped["scrape_configs"][0]["dns_sd_configs"][0]["port"] == defaults["admin_port"]


@each
def test_the_health_check_is_a_command(path: Path) -> None:
    """Of avapd's, with options that it knows; and the one of the image."""
    _, program, name, *options = services(path)["avapd"]["healthcheck"]["test"]
    assert program == "avapd"
    cli.commands[name].make_context(name, list(options))
    command = re.search(
        r"^HEALTHCHECK .* CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert command
    assert json.loads(command[1]) == [program, name, *options]


def test_swarm_opens_no_port() -> None:
    """What is published is open on every node. Networks are encrypted; clients share none with the database."""
    made = stack(STACK)
    assert not [name for name, service in made["services"].items() if service.get("ports")]
    assert all(network["driver_opts"] == {"encrypted": "true"} for network in made["networks"].values())
    assert made["networks"]["clients"]["attachable"] is True
    assert [name for name, service in made["services"].items() if "clients" in service["networks"]] == ["avapd"]


def test_swarm_publishes_tls_alone(tmp_path: Path) -> None:
    """With publish.yml avapd has a certificate, health for its check, and the port; nothing else differs."""
    before, made = stack(STACK), stack(STACK, PUBLISH)
    service = made["services"].pop("avapd")
    alone = before["services"].pop("avapd")
    assert made["services"] == before["services"]
    assert {key for key in service if service[key] != alone.get(key)} == {"environment", "secrets", "ports"}
    assert [port["target"] for port in service["ports"]] == [int(config.settings()["port"].default_text)]
    mounted = {f"/run/secrets/{secret.get('target', secret['source'])}" for secret in service["secrets"]}
    given = service["environment"]
    assert {value for name, value in given.items() if name.endswith("_FILE")} == mounted
    text = {"DATABASE_URL": "postgresql://avapd_reader@postgres/avap", "API_KEY": "k" * 32}
    for name, value in text.items():
        (tmp_path / name).write_text(value, encoding="utf-8")
    read = config.load({**given, **{f"{name}_FILE": str(tmp_path / name) for name in text}})
    assert not read.insecure
    assert read.tls_cert_file
    assert given["AVAPD_TARGET"] == f"127.0.0.1:{read.health_port}"


def test_swarm_waits_ten_minutes_for_a_database() -> None:
    """As a startup probe would: what has never served is not killed before. Its check asks whether it serves."""
    check = services(STACK)["avapd"]["healthcheck"]
    assert seconds(check["start_period"]) == 600
    assert "--service" not in check["test"]


def test_every_file_that_is_mounted_exists() -> None:
    """Those of compose.yaml but for the secrets, and the configs of the stack; both mount the same."""
    declared = yaml.safe_load(STACK.read_text(encoding="utf-8"))
    stack = {
        (STACK.parent / declared["configs"][one["source"]]["file"]).resolve(): one["target"]
        for service in declared["services"].values()
        for one in service.get("configs", [])
    }
    assert len(stack) == len(declared["configs"])
    volumes = [line for service in services(FILES["compose"]).values() for line in service.get("volumes", [])]
    mounts = dict(line.removesuffix(":ro").rsplit(":", 1) for line in volumes if line.startswith("."))
    assert {(COMPOSE / source).resolve(): target for source, target in mounts.items()} == stack
    assert all(path.is_file() for path in stack)
    assert all(line.endswith(":ro") for line in volumes if line.startswith("."))


@each
def test_prometheus_keeps_what_the_objectives_look_back(path: Path) -> None:
    """Longer than any range of a query, and on its volume no more than a size."""
    flags = dict(flag[2:].split("=", 1) for flag in services(path)["prometheus"]["command"])
    days = re.fullmatch(r"(\d+)d", flags["storage.tsdb.retention.time"])
    assert days
    ranges = re.findall(r"\[(\d+)d\]", text(DEPLOY / "operations.md") + text(DEPLOY / "monitoring" / "alerts.yml"))
    assert int(days[1]) > max(map(int, ranges)) == 30
    assert re.fullmatch(r"\d+GB", flags["storage.tsdb.retention.size"])


def test_both_run_the_same_images() -> None:
    """Of the same versions, but for the registry of our own."""
    compose, stack = (
        {name: one["image"] for name, one in services(path).items() if name != "avapd"} for path in FILES.values()
    )
    assert compose == stack


def test_an_update_starts_the_new_task_first_and_goes_back_when_it_fails() -> None:
    """Of avapd, one task at a time, watched for longer than its health check needs to fail."""
    deploy = services(STACK)["avapd"]["deploy"]
    assert deploy["replicas"] >= 2
    for kind, action in (("update_config", "rollback"), ("rollback_config", "pause")):
        assert deploy[kind]["order"] == "start-first"
        assert deploy[kind]["parallelism"] == 1
        assert deploy[kind]["failure_action"] == action
        check = services(STACK)["avapd"]["healthcheck"]
        assert seconds(deploy[kind]["monitor"]) >= check["retries"] * seconds(check["interval"])


# --- what they make -----------------------------------------------------------------------------------------------


def test_secrets_are_made_once(copy: Path) -> None:
    """Random, in a folder closed to others; a second run changes none, and makes one that was removed."""
    folder = copy / "secrets"
    assert folder.stat().st_mode & 0o077 == 0
    before = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert before.keys() == yaml.safe_load(FILES["compose"].read_text(encoding="utf-8"))["secrets"].keys()
    assert len(set(before.values())) == len(before)
    assert len(before["api-key"]) >= config.KEY_BYTES
    (folder / "api-key").unlink()
    run(copy / "secrets.sh")
    after = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"api-key"}


def test_avapd_serves_from_the_database_that_the_scripts_make(
    copy: Path, own_postgres: Postgres, serve: Callable[..., Server]
) -> None:
    """The scripts run as the image of PostgreSQL runs them; avapd starts with what compose gives it, password and all.

    In production mode, as the role of reader.sql.
    """
    volumes = [line.removesuffix(":ro").rsplit(":", 1) for line in services(FILES["compose"])["postgres"]["volumes"]]
    scripts = sorted((Path(to).name, copy / source) for source, to in volumes if "initdb.d" in to)
    assert len(scripts) == 4
    secrets = copy / "secrets"
    for _, script in scripts:
        script.write_text(script.read_text(encoding="utf-8").replace("/run/secrets", str(secrets)))
        run(own_postgres.bin / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", script, own_postgres.url())

    ask_for_passwords(own_postgres)
    url = (secrets / "database-url").read_text(encoding="utf-8")
    here = f"@/{DATABASE}?host={own_postgres.folder}&port={own_postgres.port}"
    (secrets / "database-url").write_text(url.replace("@postgres/avap", here))
    places = {"/run/secrets": secrets, "/var/lib/avapd": copy / "kept"}
    (copy / "kept").mkdir()
    given = environment(FILES["compose"])
    for path, here_it_is in places.items():
        given = {name: value.replace(path, str(here_it_is)) for name, value in given.items()}
    local = {"AVAPD_HOST": "127.0.0.1", "AVAPD_ADMIN_HOST": "127.0.0.1", "API_KEY": "", "AVAPD_DRAIN_SECONDS": "3"}
    server = serve("", env=given | local).wait_serving()
    with server.calls((secrets / "api-key").read_text(encoding="utf-8")) as calls:
        assert calls.command("addVar").code.startswith(b"def run")
        assert len(calls.catalog().commands) >= 100  # or AvapCacheTooSmall would fire at once
    assert server.status()["environment"] == "production"
    wait_until(lambda: any((copy / "kept").iterdir()), 10, "the catalog is kept")
    done = attempt(own_postgres.bin / "psql", "-X", "-w", "-c", "SELECT 1", own_postgres.url("avapd_reader"))
    assert "password" in done.stderr


def ask_for_passwords(postgres: Postgres) -> None:
    """Let nobody in as avapd_reader without one."""
    rules = postgres.data / "pg_hba.conf"
    rules.write_text("local all avapd_reader scram-sha-256\n" + rules.read_text(encoding="utf-8"))
    postgres.psql("SELECT pg_reload_conf()")
