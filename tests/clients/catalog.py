"""The catalog that clients are tried with: one answer of more than 16 MiB, and definitions that can be told apart.

In gzip it has more than 8 MiB, so that it is a large answer also to clients that take it so.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator

from clients.program import GET, Call, Program, get
from support.calls import Outcome
from support.database import Database
from support.server import Server

from avapd.pb import avap_pb2

NAMES, CODE_BYTES = 2000, 8400
# In CI a worker may have to wait for its CPU, which is no finding here.
ENV = {"AVAPD_REFRESH_SECONDS": "60", "AVAPD_SILENCE_SECONDS": "60"}


@contextlib.contextmanager
def catalog(postgres_url: str) -> Iterator[Database]:
    """A database with it."""
    made = Database(postgres_url)
    made.insert_many(NAMES, CODE_BYTES)
    made.execute(
        f"""UPDATE obex_dapl_functions SET code = rpad(split_part(code, chr(10), 1) || chr(10) || '# ' ||
        (SELECT string_agg(md5(id || '/' || n), '') FROM generate_series(1, {CODE_BYTES // 32}) AS n), {CODE_BYTES})"""
    )
    yield made
    made.drop()


def name_of(number: int) -> str:
    """The name of a definition; beyond the last one they begin again."""
    return f"command_{number % NAMES:06}"


def found(outcome: Outcome) -> str:
    """The name of the definition that came, once it is known to be whole."""
    assert outcome.code == 0, outcome
    answer = avap_pb2.CommandResponse.FromString(outcome.payload)
    assert len(answer.code) == CODE_BYTES
    assert answer.code.startswith(f"result = {int(answer.name[-6:])}\n".encode())
    return answer.name


def check_catalog(outcome: Outcome, server: Server) -> None:
    """The answer of SyncCatalog holds everything, and has more than 16 MiB."""
    assert outcome.code == 0, outcome
    assert len(outcome.payload) > 16 << 20
    answer = avap_pb2.CatalogResponse.FromString(outcome.payload)
    assert [command.name for command in answer.commands] == [name_of(number) for number in range(NAMES)]
    assert answer.version_hash == server.status()["version_hash"]


def calls_until_replaced(program: Program, server: Server) -> Iterator[Call]:
    """Have the workers replaced, and begin calls, each when it is asked for, until all of them are."""
    before, told = server.workers(), len(server.events("Workers Replaced"))
    server.process.send_signal(signal.SIGUSR2)
    for number in itertools.count():
        yield program.begin(GET, get(name_of(number)))
        if number % 100 == 0 and len(server.events("Workers Replaced")) > told:
            break
    assert not set(before) & set(server.workers())
