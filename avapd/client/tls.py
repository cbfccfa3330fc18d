"""How a client meets a server that speaks TLS."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import grpc

from avapd.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files: the authority that signed the server's certificate (the system's without), and what we show (mTLS).

    `name` is the one in the server's certificate, where it is reached by another. Read when a client is made.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    name: str = ""

    def credentials(self) -> Any:
        """What a channel takes. Raises ConfigError when a file cannot be read."""
        if (self.cert is None) != (self.key is None):
            raise ConfigError(["a client's certificate and its key go together; one is missing"])
        ca, key, cert = (_content(path) for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)

    def options(self) -> list[tuple[str, Any]]:
        """Options of the channel."""
        return [("grpc.ssl_target_name_override", self.name)] if self.name else []


def _content(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path is not None else None
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}"]) from None
