"""Images built and run on this machine without a registry: buildah and podman as root, with a storage of their own.

The base image is made of Debian's packages by mmdebstrap, and what pip installs into it is fetched before. Nothing
outside the given folder is written, and no other container of the machine is seen.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from clients.tools import installed

ROOT = Path(__file__).parents[2]
BASE, IMAGE = "localhost/python:3.13-slim-trixie", "localhost/avapd:test"
PROGRAMS = {"buildah": "", "podman": "", "runc": "", "skopeo": "", "catatonit": "", "mmdebstrap": ""}
_SUITE, _PYTHON = "trixie", "3.13"
_STORAGE = '[storage]\ndriver = "overlay"\ngraphroot = "{0}/images"\nrunroot = "{0}/run"\n'
_CONTAINERS = """
[containers]
# Podman's own need a capability that a root in a container does not have.
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


class Engine:
    """buildah and podman on a storage in `folder`."""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("images are built and run as root here")
        self.folder = folder
        self._programs = {name: installed(name, f"Debian's package {name}") for name in PROGRAMS}
        for name, text in (("storage.conf", _STORAGE.format(folder)), ("containers.conf", _CONTAINERS)):
            (folder / name).write_text(text, encoding="utf-8")
        self._env = {
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "CONTAINERS_CONF": str(folder / "containers.conf"),
        }

    def run(self, program: str, *arguments: str | Path, check: bool = True) -> str:
        """What a program prints on stdout, its last line end cut off."""
        done = subprocess.run(
            [self._programs[program], *arguments], env=self._env, cwd=self.folder, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{program} {arguments[0]}: {done.stdout}{done.stderr}"
        return done.stdout.removesuffix("\n")

    def podman(self, *arguments: str | Path, check: bool = True) -> str:
        return self.run("podman", *arguments, check=check)

    def close(self) -> None:
        """Remove every container and image, and the mount that the storage stands on."""
        self.podman("rm", "--force", "--time", "0", "--all", check=False)
        self.podman("rmi", "--force", "--all", check=False)
        subprocess.run(["umount", self.folder / "images" / "overlay"], capture_output=True, check=False)

    # --- building ---------------------------------------------------------------------------------------

    def make_base(self) -> None:
        """The image BASE: a minimal Debian with Python, nothing else."""
        packages = "--include=python3,python3-venv,ca-certificates"
        tar = self.folder / "base" / "base.tar"
        tar.parent.mkdir()
        self.run("mmdebstrap", "--quiet", "--variant=minbase", packages, _SUITE, tar, *_mirror())
        (tar.parent / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n", encoding="utf-8")
        self._build(BASE, tar.parent)

    def build(self, **arguments: str) -> None:
        """The image IMAGE from the Dockerfile as it stands, on BASE."""
        wheels, settings = self.folder / "wheels", self.folder / "pip.conf"
        fetch_wheels(wheels, ROOT / "requirements.lock", ROOT / "deploy" / "build.lock")
        settings.write_text("[global]\nno-index = true\nfind-links = /wheels\n", encoding="utf-8")
        words = [f"--build-arg={name}={value}" for name, value in {"BASE_IMAGE": BASE, **arguments}.items()]
        self._build(IMAGE, ROOT, *words, f"--volume={wheels}:/wheels:ro", f"--volume={settings}:/etc/pip.conf:ro")

    def _build(self, name: str, context: Path, *options: str) -> None:
        # Docker's format, since OCI's knows no HEALTHCHECK.
        self.run(
            "buildah", "bud", "--quiet", "--format=docker", "--isolation=chroot", *options, f"--tag={name}", context
        )


def fetch_wheels(folder: Path, *locks: Path) -> None:
    """What the locks name, for the Python of BASE, checked by hash."""
    for lock in locks:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "--no-deps", "--python-version", _PYTHON, "--dest", folder, "--requirement", lock],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def _mirror() -> Iterable[str]:
    """Where this machine gets Debian from; elsewhere mmdebstrap's default."""
    asked = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"]
    lines = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()
    return [line.split()[1] for line in lines if line.startswith("Debian ") and "security" not in line][:1]


def environment(**values: Any) -> list[str]:
    """`--env` options."""
    return [f"--env={name}={value}" for name, value in values.items()]
