"""`python -m tests.fuzz TARGET --seconds N`: fuzz one target with Atheris. Run it from the root of the repository.

The corpus in tests/fuzz/corpus/TARGET is where it starts; tests/fuzz/test_corpus.py runs it without Atheris. With
`--keep` the inputs that reach something new are merged into it. A finding ends the run with exit code 1 and is written
beside the corpus as `corpus/TARGET/finding-…`, where it fails that test until it is mended.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
TARGETS = ("frames", "hpack", "request", "snapshot")
MAX_BYTES = 4096


def main() -> int:
    """Exit code 1 when something was found, 2 when Atheris is not there."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="how long (60)")
    parser.add_argument("--keep", action="store_true", help="merge what reaches something new into the corpus")
    parser.add_argument("--libfuzzer", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.stderr.write("Atheris is not there: pip install atheris (Linux, Python 3.11 to 3.13)\n")
        return 2
    if options.libfuzzer is not None:
        return _fuzz(options.target, options.libfuzzer)
    with tempfile.TemporaryDirectory(prefix="avapd-fuzz-") as folder:
        return _campaign(options.target, options.seconds, Path(folder), keep=options.keep)


def _campaign(target: str, seconds: int, folder: Path, *, keep: bool) -> int:
    """Fuzz in a child, since libFuzzer ends its process, then merge in another."""
    kept, found = CORPUS / target, folder / "found"
    kept.mkdir(parents=True, exist_ok=True)
    found.mkdir()
    # libFuzzer runs its own argv[0] again to merge.
    program = folder / "program"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.fuzz {target} --libfuzzer "$@"\n')
    program.chmod(0o700)
    limits = (f"-max_len={MAX_BYTES}", "-timeout=10", "-rss_limit_mb=2048", f"-artifact_prefix={kept}/finding-")
    code = _run(program, f"-max_total_time={seconds}", "-print_final_stats=1", *limits, str(found), str(kept))
    if code == 0 and keep:
        code = _run(program, "-merge=1", *limits, str(kept), str(found))
    return 1 if code else 0


def _run(program: Path, *arguments: str) -> int:
    environment = {**os.environ, "AVAPD_FUZZ_PROGRAM": str(program)}
    return subprocess.run([program, *arguments], check=False, cwd=CORPUS.parents[2], env=environment).returncode


def _fuzz(target: str, arguments: list[str]) -> int:
    atheris: Any = importlib.import_module("atheris")  # optional

    sys.path.insert(0, str(CORPUS.parents[1]))  # what the tests share
    with atheris.instrument_imports(include=["avapd"]):
        from . import targets  # noqa: PLC0415  # what is imported here is instrumented

        run = targets.load(target)
    atheris.Setup([os.environ["AVAPD_FUZZ_PROGRAM"], *arguments], run)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
