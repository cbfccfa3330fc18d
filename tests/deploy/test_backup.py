"""deploy/postgres/backup.yaml: what its job writes brings the table back, rights included."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.guide import DEPLOY, text

from avapd.control.source.listener import trigger
from avapd.demo.postgres import DATABASE, OWNER, Postgres, PostgresError

SHIPPED = DEPLOY / "postgres" / "backup.yaml"
ROWS = "SELECT * FROM obex_dapl_functions ORDER BY id"
KEPT = 14


def job() -> Any:
    """The pod of the CronJob."""
    (found,) = [part for part in yaml.safe_load_all(SHIPPED.read_text(encoding="utf-8")) if part["kind"] == "CronJob"]
    return found["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def run(postgres: Postgres, folder: Path, role: str, *command: str) -> subprocess.CompletedProcess[str]:
    """A program of the image, in the folder that the pod mounts, with the names that the Secret gives."""
    env = {
        "PATH": f"{postgres.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}", "PGHOST": str(postgres.folder),
        "PGPORT": postgres.port, "PGUSER": role, "PGDATABASE": DATABASE,
    }  # fmt: skip
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def back_up(postgres: Postgres, folder: Path, role: str = "avapd_backup") -> subprocess.CompletedProcess[str]:
    """What the container runs."""
    (container,) = job()["containers"]
    return run(postgres, folder, role, *container["command"], *container["args"])


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as made:
        yield made


@pytest.fixture
def new() -> Iterator[Postgres]:
    """A second server, on which nobody was before."""
    with Postgres() as made:
        yield made


@pytest.fixture
def postgres(server: Postgres) -> Postgres:
    """With both tables, new, two commands, and the role of the job."""
    server.psql("DROP SCHEMA public CASCADE; DROP ROLE IF EXISTS avapd_reader, avapd_backup")
    server.psql("CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC")
    server.psql((resources.files("avapd.demo") / "tables.sql").read_text(encoding="utf-8"))
    server.psql("CREATE ROLE avapd_backup LOGIN; GRANT pg_read_all_data TO avapd_backup")
    server.psql("INSERT INTO obex_dapl_functions (name, code) VALUES ('si', 'ñ = 1'), ('no', NULL)")
    return server


def test_a_lost_table_comes_back(postgres: Postgres, tmp_path: Path) -> None:
    """Rows, the next id, and the reader's right: all as before, by the command of deploy/README.md."""
    before = postgres.psql(ROWS)
    done = back_up(postgres, tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.iterdir()
    assert made.suffix == ".dump"
    assert made.stat().st_mode & 0o077 == 0
    postgres.psql("UPDATE obex_dapl_functions SET code = 'x'; DROP TABLE avap_bytecode")
    restore = ["--clean", "--if-exists", "--no-owner", "--single-transaction", f"--dbname={DATABASE}"]
    done = run(postgres, tmp_path, OWNER, "pg_restore", *restore, made.name)
    assert done.returncode == 0, done.stderr
    assert postgres.psql(f"SET ROLE avapd_reader; {ROWS}") == before
    assert postgres.psql("INSERT INTO obex_dapl_functions (name) VALUES ('neu') RETURNING id").strip() == "3"
    assert postgres.psql("SET ROLE avapd_reader; SELECT count(*) FROM avap_bytecode").strip() == "0"


def on_a_new_server(dump: str, url: str) -> list[str]:
    """The commands of deploy/README.md for one, with a dump and a database in them."""
    _, after = text(DEPLOY / "README.md").split("**On a new server**")
    block = after.split("\n\n")[1]
    for old, made in (
        ("avapd-….dump", dump), ("postgresql://owner@new/database", url), ("deploy/postgres", str(SHIPPED.parent)),
    ):  # fmt: skip
        assert old in block
        block = block.replace(old, made)
    return [line.strip() for line in block.splitlines()]


def test_a_new_server_gets_it_all(postgres: Postgres, new: Postgres, tmp_path: Path) -> None:
    """Which has neither role nor trigger's function: rows, the next id, the reader's right, and the trigger."""
    postgres.psql(trigger("public", "avap", compiled=False))
    before = postgres.psql(ROWS)
    assert back_up(postgres, tmp_path).returncode == 0
    (made,) = tmp_path.iterdir()
    whole = ("pg_restore", "--no-owner", f"--dbname={DATABASE}", "--single-transaction", made.name)
    assert "does not exist" in run(new, tmp_path, OWNER, *whole).stderr
    for line in on_a_new_server(made.name, new.url()):
        done = run(new, tmp_path, OWNER, "bash", "-o", "pipefail", "-c", line)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert new.psql(f"SET ROLE avapd_reader; {ROWS}") == before
    assert new.psql("INSERT INTO obex_dapl_functions (name) VALUES ('neu') RETURNING id").strip() == "3"
    assert new.psql("SET ROLE avapd_reader; SELECT count(*) FROM avap_bytecode").strip() == "0"
    triggers = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal"
    assert new.psql(triggers) == postgres.psql(triggers) != "0\n"


def test_the_job_works_without_the_second_table(postgres: Postgres, tmp_path: Path) -> None:
    """avap_bytecode is optional."""
    postgres.psql("DROP TABLE avap_bytecode")
    assert back_up(postgres, tmp_path).returncode == 0


def test_a_backup_that_failed_leaves_none(postgres: Postgres, tmp_path: Path) -> None:
    """Without the right to read, the job fails and there is no file that a restore would take."""
    assert back_up(postgres, tmp_path, "avapd_reader").returncode != 0
    assert not list(tmp_path.glob("*.dump"))
    with pytest.raises(PostgresError):
        postgres.psql("SET ROLE avapd_reader; SELECT last_value FROM obex_dapl_functions_id_seq")


def test_only_the_last_ones_are_kept(postgres: Postgres, tmp_path: Path) -> None:
    """With the new one there are 14; the oldest went, other files stay."""
    for day in range(1, 31):
        (tmp_path / f"avapd-202501{day:02}T021700Z.dump").touch()
    (tmp_path / "note.txt").touch()
    assert back_up(postgres, tmp_path).returncode == 0
    names = sorted(path.name for path in tmp_path.glob("*.dump"))
    assert len(names) == KEPT
    assert names[0] == "avapd-20250118T021700Z.dump"
    assert (tmp_path / "note.txt").exists()


def test_the_job_may_do_nothing_else() -> None:
    """Not root, no capability, nothing writable but the volume, no token, secrets by reference."""
    pod = job()
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert "env" not in container
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == [container["workingDir"]]
