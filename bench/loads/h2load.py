"""h2load, a C program of nghttp2, as a client: the same call again and again."""

from __future__ import annotations

import re
import subprocess
import tempfile
from typing import Final

from bench.loads.load import Done, Load
from bench.servers.avapd import BenchError
from bench.servers.build import shown
from bench.servers.contestants import Target

_UNITS: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def h2load(target: Target, load: Load, seconds: float) -> Done:
    """It counts HTTP statuses; that the answers are whole is seen from the bytes of data per call."""
    with tempfile.NamedTemporaryFile(suffix=".message") as body:
        body.write(b"\0" + len(target.message).to_bytes(4, "big") + target.message)
        body.flush()
        headers = {"content-type": "application/grpc", "te": "trailers", **target.headers}
        command = [
            "h2load", "-D", f"{round(seconds * 1000)}ms", "-c", str(load.connections), "-m", str(load.streams),
            "-d", body.name, *(f"--header={name}: {value}" for name, value in headers.items()),
            f"http://127.0.0.1:{target.port}{target.path}",
        ]  # fmt: skip
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    finished = _numbers(r"finished in ([\d.]+)(s|ms),", text)
    done, failed, errored, timed_out = _numbers(
        r"(\d+) done, \d+ succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text
    )
    data = _numbers(r"\((\d+)\) data", text)
    # It ends in the midst of answers, and counts the bytes of those less exactly than the calls.
    whole = int(done) - load.connections * load.streams
    size = target.sent_bytes or target.answer_bytes
    if int(data[0]) < 0.95 * whole * size:
        raise BenchError(f"{data[0]} bytes came for {done} calls, each answer has {size}")
    begun = int(done) + load.connections * load.streams
    if target.sent_bytes and int(data[0]) > begun * (target.sent_bytes + target.answer_bytes) / 2:
        raise BenchError(f"{data[0]} bytes came for {done} calls, in gzip each answer has {size}")
    mean = _numbers(r"time for request: +\S+ +\S+ +([\d.]+)(us|ms|s) ", text)
    lost = int(failed) + int(errored) + int(timed_out)
    return Done(int(done), lost, _seconds(*finished), _seconds(*mean), shown(command))


def _numbers(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    if found is None:
        raise BenchError(f"h2load says nothing like {pattern!r}:\n{text}")
    return found.groups()


def _seconds(number: str, unit: str) -> float:
    return float(number) * _UNITS[unit]
