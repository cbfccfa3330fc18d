"""`avapd demo`: the ordinary server on a real PostgreSQL of its own, with a sample catalog. Nothing here is a mock."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from pathlib import Path
from typing import Self

from avapd.demo.catalog import fill
from avapd.demo.postgres import Postgres

__all__ = ["Demo"]

_TEXT = """
  {count} definitions are served on 127.0.0.1:{port}. http://127.0.0.1:{admin_port} shows how. Try, in another terminal:

  export API_KEY={key}{signing}
  {avapd} get addVar{at}
  {avapd} list{at}
  {avapd} sync{at}
  curl -s http://127.0.0.1:{admin_port}/metrics | grep ^avap_
  {avapd} top 127.0.0.1:{admin_port}
  grpcurl -plaintext -H "x-avap-auth: $API_KEY" -d '{{"name": "addVar"}}' {calls}
  ghz --insecure -m "{{\\"x-avap-auth\\": \\"$API_KEY\\"}}" -d '{{"name": "addVar"}}' -c 10 -n 20000 --call {ghz}

  Change a row, and see it served within {seconds} seconds:

  {psql} -c "UPDATE obex_dapl_functions SET code = '# edited' || chr(10) || code WHERE name = 'addVar'"
  {avapd} get addVar{at}

  Ctrl-C stops the server{end}.
"""


class Demo:
    """A database with the sample catalog. With `keep` its data stay in that folder, for the next time."""

    seconds = 2

    def __init__(self, keep: Path | None, *, port: int, admin_port: int, signed: bool) -> None:
        self._keep = keep
        self._port = port
        self._admin_port = admin_port
        self._signed = signed
        self._key = secrets.token_urlsafe(24)
        self._signing_key = secrets.token_urlsafe(24)
        self._postgres = Postgres(keep)
        self._count = 0

    def __enter__(self) -> Self:
        self._postgres.__enter__()
        try:
            self._count = fill(self._postgres, self._signing_key.encode())
        except BaseException:
            self._postgres.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._postgres.stop()

    def environment(self) -> dict[str, str]:
        """The settings that `avapd serve` would need for this database."""
        settings = {
            "DATABASE_URL": self._postgres.url("avapd_reader"),
            "API_KEY": self._key,
            "PORT": str(self._port),
            "AVAPD_HOST": "127.0.0.1",
            "AVAPD_ADMIN_PORT": str(self._admin_port),
            "AVAPD_ENV": "development",
            "AVAPD_REFRESH_SECONDS": str(self.seconds),
            "AVAPD_DRAIN_SECONDS": "5",
            "AVAPD_PRE_DRAIN_SECONDS": "0.2",
        }
        if self._signed:
            settings["SIGNING_KEY"] = self._signing_key
        return settings

    def introduction(self) -> str:
        """What to try, line by line, to copy and paste."""
        psql = shlex.join([str(self._postgres.bin / "psql"), self._postgres.url()])
        return _TEXT.format(
            count=self._count,
            port=self._port,
            admin_port=self._admin_port,
            key=self._key,
            signing=f"\n  export SIGNING_KEY={self._signing_key}  # verifies the packages" if self._signed else "",
            avapd=_command(),
            calls=f"127.0.0.1:{self._port} avap.DefinitionEngine/GetCommand",
            ghz=f"avap.DefinitionEngine/GetCommand 127.0.0.1:{self._port}",
            at="" if self._port == 50051 else f" --target 127.0.0.1:{self._port}",
            psql=psql,
            seconds=self.seconds + 1,
            end=f"; the database stays in {self._keep}" if self._keep else " and removes the database",
        )


def _command() -> str:
    """How this avapd is called from the folder it was started in."""
    path = Path(sys.argv[0])
    if path.name != "avapd":
        return f"{shlex.quote(sys.executable)} -m avapd"
    shown = os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)
    return shlex.quote(shown)
