"""The child: reads definitions, answers what is wrong with each. A script of its own: it imports nothing of avapd.

Definitions come from a table that others write, and a compiler is a large program to give them to. So it runs here,
without the environment, the keys and the connections of the master, and it may take only so much memory and time.

    in     interface length u32 | code length u32 | both as UTF-8                          (little-endian)
    out    length u16 | `interface` or `code`, a colon and what is wrong; nothing when the definition is sound
           once before the first, to say that it is ready, an empty one

A definition that takes more than the allowed CPU time, or that brings the compiler down, ends this process: whoever
waits for the answer knows which it was.

    python -I -S child.py CPU_SECONDS GRAMMAR INTERFACES MEMORY_BYTES NICENESS     (a minor version or 0; 1 or 0)
"""

from __future__ import annotations

import ast
import json
import os
import resource
import signal
import socket
import struct
import sys
import unicodedata  # noqa: F401  # the compiler wants it for names that are not ASCII, when no file can be opened any more
from contextlib import suppress
from pathlib import Path

HEAD = struct.Struct("<II")
ANSWER = struct.Struct("<H")
_ERROR_OCTETS = 300
_KINDS = {
    dict: "object", list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null",
}  # fmt: skip


def interface_fault(text: str) -> str:
    """Why a text is no JSON array of objects; empty when it is."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg}, line {error.lineno} column {error.colno}"
    except ValueError as error:
        return f"not JSON: {error}"
    except RecursionError:
        return "nested too deeply"
    if not isinstance(found, list):
        return f"a JSON {_KINDS[type(found)]}, not an array of objects"
    for place, item in enumerate(found, 1):
        if not isinstance(item, dict):
            return f"element {place} of the array is a JSON {_KINDS[type(item)]}, not an object"
    return ""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no value")


def code_fault(source: str, minor: int) -> str:
    """Why a text does not compile as Python 3.`minor`; empty when it does."""
    try:
        if minor == sys.version_info.minor:
            compile(source, "code", "exec", dont_inherit=True)
        else:
            compile(ast.parse(source, feature_version=(3, minor)), "code", "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, OverflowError) as error:
        return str(error)
    except RecursionError:
        return "nested too deeply"
    except MemoryError:
        return "too large or too deeply nested to be compiled"
    return ""


def fault(interface: bytes, code: bytes, *, minor: int, interfaces: bool) -> str:
    """The first thing that is wrong with a definition."""
    if interfaces and (found := interface_fault(interface.decode())):
        return f"interface:{found}"
    if minor and (found := code_fault(code.decode(), minor)):
        return f"code:{found}"
    return ""


def restrict(octets: int, niceness: int) -> None:
    """Take away from this process what it does not need; when memory is short, it is the first to go."""
    os.nice(niceness)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    nothing = (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC)
    for limit, wanted in ((resource.RLIMIT_AS, octets), (resource.RLIMIT_NOFILE, 3), *((one, 0) for one in nothing)):
        _, hard = resource.getrlimit(limit)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (most, most))


def main() -> None:
    """Answer until the other side closes the connection, which is descriptor 0."""
    minor, interfaces, octets, niceness = map(int, sys.argv[2:])
    seconds = float(sys.argv[1])
    master = socket.socket(fileno=0)
    stream = master.makefile("rb")
    restrict(octets, niceness)
    master.sendall(ANSWER.pack(0))
    while head := stream.read(HEAD.size):
        sizes = HEAD.unpack(head)
        interface, code = map(stream.read, sizes)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # nobody catches SIGPROF: it ends the process
        found = fault(interface, code, minor=minor, interfaces=bool(interfaces))
        signal.setitimer(signal.ITIMER_PROF, 0)
        answer = found.encode("utf-8", "backslashreplace")[:_ERROR_OCTETS]
        master.sendall(ANSWER.pack(len(answer)) + answer)


if __name__ == "__main__":
    main()
