"""Authorities and certificates for tests, in files as a server reads them, and clients that show and trust them."""

from __future__ import annotations

import datetime as dt
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import grpc
import trustme

NAMES = ("localhost", "127.0.0.1")
PROTOCOLS = ["h2"]


class Folder:
    """A folder with `cert.pem`, `key.pem` and `client-ca.pem`, replaced as Kubernetes does it.

    The files are links into `..data`, itself a link to the folder of the present version, which one rename swaps.
    """

    def __init__(self, path: Path, authority: trustme.CA) -> None:
        self.path = path
        self.authority = authority
        self.clients = trustme.CA()
        self._version = 0
        self.rotate()
        for name in ("cert.pem", "key.pem", "client-ca.pem"):
            (path / name).symlink_to(Path("..data") / name)

    def rotate(self, **options: Any) -> bytes:
        """A new certificate, swapped in at one moment; its DER form."""
        leaf = self.authority.issue_cert(*NAMES, **options)
        self.put(chain(leaf), leaf.private_key_pem.bytes())
        return ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())

    def put(self, cert: bytes, key: bytes, client_ca: bytes | None = None) -> None:
        """These contents, swapped in at one moment."""
        self._version += 1
        version = self.path / f"..version-{self._version}"
        version.mkdir()
        (version / "cert.pem").write_bytes(cert)
        (version / "key.pem").write_bytes(key)
        (version / "client-ca.pem").write_bytes(client_ca or self.clients.cert_pem.bytes())
        (self.path / "..data_tmp").symlink_to(version.name)
        os.replace(self.path / "..data_tmp", self.path / "..data")  # noqa: PTH105  # rename(2), and nothing else

    def settings(self, *, mutual: bool = False) -> dict[str, str]:
        """What turns TLS on, or mTLS."""
        found = {"AVAPD_TLS_CERT_FILE": str(self.path / "cert.pem"), "AVAPD_TLS_KEY_FILE": str(self.path / "key.pem")}
        return found | ({"AVAPD_TLS_CLIENT_CA_FILE": str(self.path / "client-ca.pem")} if mutual else {})

    def credentials(self, signed_by: trustme.CA | None = None, *, trusting: trustme.CA | None = None) -> Any:
        """Of a grpcio client; with `signed_by` it shows a certificate."""
        ca = (trusting or self.authority).cert_pem.bytes()
        if signed_by is None:
            return grpc.ssl_channel_credentials(ca)
        leaf = signed_by.issue_cert("client.example")
        return grpc.ssl_channel_credentials(ca, leaf.private_key_pem.bytes(), chain(leaf))

    def context(self, signed_by: trustme.CA | None = None, protocols: list[str] | None = None) -> ssl.SSLContext:
        """Of Python's own client."""
        made = ssl.create_default_context(cadata=self.authority.cert_pem.bytes().decode())
        made.set_alpn_protocols(PROTOCOLS if protocols is None else protocols)
        if signed_by is not None:
            signed_by.issue_cert("client.example").configure_cert(made)
        return made


def chain(leaf: trustme.LeafCert) -> bytes:
    """A certificate and what stands above it, as PEM."""
    return b"".join(pem.bytes() for pem in leaf.cert_chain_pems)


def days_on(days: int) -> dt.datetime:
    """A moment so many days from now."""
    return dt.datetime.now(dt.UTC) + dt.timedelta(days=days)


def shown(port: int, context: ssl.SSLContext) -> bytes:
    """The certificate that a server shows, as DER, once it has sent its SETTINGS. OSError when it will not talk."""
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        if not secured.recv(9):
            raise ConnectionResetError("closed without SETTINGS")
        found = secured.getpeercert(binary_form=True)
        assert found is not None
        return found
