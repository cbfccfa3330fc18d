"""The certificates of the gRPC port: read from their files, proved, and handed to the workers in sealed memory.

    files ──read──► contents ──prove──► Bundle ──► memory ──► workers      at the start, on SIGHUP, when they change

The files are read every second and compared by content: that sees a copy, a rename, and the swapped symlink by
which Kubernetes replaces a whole folder. They are proved by a handshake in memory with a client that trusts nothing
else: a key of another certificate, one that has expired, one that is not for servers end there and not in front of the
clients. Then the old one stays, with an ERROR and a count. Nothing of what the files hold ever stands in a message.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from avapd.config import Config
from avapd.control.aside import aside
from avapd.errors import CertificateError
from avapd.log import Log
from avapd.shared import memory
from avapd.shared.channel import Certificates as Message

POLL_SECONDS: Final = 1.0
_RENEWAL_SECONDS: Final = 14 * 86_400
_MOST_BYTES: Final = 512 << 10
_BLOCK: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KEY: Final = re.compile(rb"-----BEGIN ((?:[A-Z]+ )*PRIVATE KEY)-----.+?-----END \1-----", re.DOTALL)
# What OpenSSL calls the mistakes that people make.
_REASONS: Final = {
    "KEY_VALUES_MISMATCH": "is the key of another certificate",
    "BAD_PASSWORD_READ": "has a password; it must have none",
}


class Validity(NamedTuple):
    """From when until when a certificate is valid, in seconds of the epoch."""

    begins: float
    ends: float

    @property
    def renewal(self) -> float:
        """When it should have been renewed: a third of its time before its end, 14 days at most."""
        return self.ends - min(_RENEWAL_SECONDS, (self.ends - self.begins) / 3)

    @classmethod
    def of(cls, certificate: Mapping[str, Any]) -> Validity:
        """Of what `ssl` tells of a certificate."""
        return cls(*(ssl.cert_time_to_seconds(certificate[name]) for name in ("notBefore", "notAfter")))


class Contents(NamedTuple):
    """The three files as they are; `client_ca` is empty without mTLS."""

    cert: bytes
    key: bytes
    client_ca: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Bundle:
    """What was proved: certificate, chain and key as PEM, the clients' authorities as PEM, when each expires (Unix).

    `renewal` is when each should have been renewed.
    """

    pem: bytes = dataclasses.field(repr=False)
    client_ca: str
    expires: dict[str, float]
    renewal: dict[str, float]

    @property
    def due(self) -> bool:
        """Whether one expires soon."""
        return min(self.renewal.values()) < time.time()


# --- reading and proving ------------------------------------------------------------------------------------------


def read(config: Config) -> Contents:
    """The files as they are now. Raises CertificateError, which names the setting and the file."""
    names = ("AVAPD_TLS_CERT_FILE", config.tls_cert_file), ("AVAPD_TLS_KEY_FILE", config.tls_key_file)
    cert, key = (_content(*named) for named in names)
    ca = _content("AVAPD_TLS_CLIENT_CA_FILE", config.tls_client_ca_file) if config.tls_client_ca_file else b""
    return Contents(cert, key, ca)


def _content(variable: str, path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise CertificateError(f"{variable} names {path}: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise CertificateError(f"{variable} names {path}: larger than {_MOST_BYTES} bytes")
    return content


def prove(contents: Contents) -> Bundle:
    """Have the certificate shown in a handshake. Raises CertificateError, also when the host has no means for it."""
    chain = _blocks("AVAPD_TLS_CERT_FILE", contents.cert)
    key = _KEY.search(contents.key)  # it may stand in one file with the certificate
    if key is None:
        raise CertificateError("AVAPD_TLS_KEY_FILE holds no PEM private key")
    pem = b"\n".join((*chain, key[0]))
    try:
        found = {"server": [*_validities(chain), _shake(_server(pem), chain[0])]}
    except ssl.SSLError as error:
        why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else _reason(error)
        raise CertificateError(f"AVAPD_TLS_CERT_FILE cannot be shown to clients: {why}") from None
    except OSError as error:
        raise CertificateError(f"AVAPD_TLS_CERT_FILE cannot be tried now: {error.strerror}") from None
    authorities: list[bytes] = []
    if contents.client_ca:
        authorities = _blocks("AVAPD_TLS_CLIENT_CA_FILE", contents.client_ca)
        try:
            found["client_ca"] = _validities(authorities)
        except ssl.SSLError:
            found["client_ca"] = []
        if not found["client_ca"]:  # of clients, it may be
            raise CertificateError("AVAPD_TLS_CLIENT_CA_FILE holds no certificate of an authority")
    expires = {name: min(one.ends for one in them) for name, them in found.items()}
    renewal = {name: min(one.renewal for one in them) for name, them in found.items()}
    return Bundle(pem, b"\n".join(authorities).decode("ascii"), expires, renewal)


def _blocks(variable: str, content: bytes) -> list[bytes]:
    found = [block for block in _BLOCK.findall(content) if block.isascii()]
    if not found:
        raise CertificateError(f"{variable} holds no PEM certificate")
    return found


def _server(pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    fd = _sealed(pem)
    try:
        context.load_cert_chain(memory.path_of(fd), password=lambda: b"")
    except ssl.SSLError as error:
        reason = _REASONS.get(error.reason or "", f"goes with no such certificate: {_reason(error)}")
        raise CertificateError(f"AVAPD_TLS_KEY_FILE {reason}") from None
    finally:
        os.close(fd)
    return context


def _sealed(pem: bytes) -> int:
    fd = memory.create("avapd-certificate", len(pem))
    memory.write_at(fd, pem, 0)
    memory.seal(fd)
    return fd


def _shake(context: ssl.SSLContext, leaf: bytes) -> Validity:
    """Shake hands with a client that trusts this certificate alone; when that is valid. Raises SSLError."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False  # by which name clients come is not known here
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(cadata=leaf.decode("ascii"))
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(back, there)
    server = context.wrap_bio(there, back, server_side=True)
    waiting = [client, server]
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    shown = client.getpeercert()
    return Validity.of(shown) if shown else Validity(0.0, 0.0)


def _validities(authorities: list[bytes]) -> list[Validity]:
    """When certificates of authorities are valid. Raises SSLError."""
    if not authorities:
        return []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=b"\n".join(authorities).decode("ascii"))
    return [Validity.of(one) for one in context.get_ca_certs()]


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's name of what is wrong, which holds nothing of the file."""
    return (error.reason or type(error).__name__).lower().replace("_", " ")


# --- in service ---------------------------------------------------------------------------------------------------


class Certificates(Collector):
    """What the workers show, for as long as the service runs, and its metrics. `note` is told of changes."""

    def __init__(self, config: Config, log: Log) -> None:
        """Read the files and prove them. Raises CertificateError."""
        self._config = config
        self._log = log
        self._results = {"loaded": 0, "failed": 0}
        self._suspect: Contents | str | None = None  # what was wrong at the last look
        self._refused: Contents | str | None = None  # and what was told of
        self._publish: Callable[[Message, int], None] = lambda _message, _fd: None
        self.note: Callable[..., None] = lambda *_, **__: None
        self._contents = read(config)
        self._bundle = prove(self._contents)
        self._fd = _sealed(self._bundle.pem)

    @property
    def expires(self) -> dict[str, float]:
        """When the first certificate of each file that is shown expires, in seconds of the epoch."""
        return self._bundle.expires

    @property
    def refused(self) -> bool:
        """Whether the files hold what cannot be shown."""
        return self._refused is not None

    @property
    def expire_soon(self) -> bool:
        """Whether one should have been renewed already."""
        return self._bundle.due

    def publish_to(self, publish: Callable[[Message, int], None]) -> None:
        """Hand to `publish` what the workers show, now and whenever it changes. The descriptor stays ours."""
        self._publish = publish
        self._show()

    async def run(self) -> None:
        """Look at the files every second."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self._take(await aside(self._look), patient=True)

    def reload(self) -> None:
        """Look at the files now, and tell at once what is wrong with them (SIGHUP)."""
        self._take(self._look(), patient=False)

    def _look(self) -> Contents | CertificateError:
        try:
            return read(self._config)
        except CertificateError as error:
            return error

    def _take(self, found: Contents | CertificateError, *, patient: bool) -> None:
        """Show what was found if it is new and good; else keep what is shown.

        Files are replaced one after the other: with patience only what is wrong twice in a row is told, once.
        """
        if found == self._contents:
            self._suspect = self._refused = None
            return
        try:
            if isinstance(found, CertificateError):
                raise found
            bundle = prove(found)
            fd = _sealed(bundle.pem)
        except (CertificateError, OSError) as error:
            wrong = str(error) if isinstance(found, CertificateError) else found
            if not patient or (wrong == self._suspect and wrong != self._refused):
                self._refused = wrong
                self._results["failed"] += 1
                self._log.error("Certificates Refused", error=str(error), hint="the old ones are shown on")
                self.note("certificates_refused", str(error))
            self._suspect = wrong
            return
        self._contents, self._suspect, self._refused = found, None, None
        self._results["loaded"] += 1
        before, self._fd, self._bundle = self._fd, fd, bundle
        self._show()
        self.note("certificates_changed", **{f"{name}_expires": _utc(at) for name, at in self._bundle.expires.items()})
        os.close(before)

    def _show(self) -> None:
        self._publish(Message(client_ca=self._bundle.client_ca), self._fd)
        ends = {f"{name}_expires": _utc(at) for name, at in self._bundle.expires.items()}
        if self.expire_soon:
            self._log.warn("Certificates Expire Soon", **ends)
        else:
            self._log.info("Certificates Shown", **ends)

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance; `collect` is asked when metrics are scraped."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Expiry of what is shown, and what became of changes."""
        for kind, meaning, moments in (
            ("expiry", "When the first certificate of the file that is in use expires", self._bundle.expires),
            (
                "renewal",
                "When the first of them should have been renewed: 14 days, or a third of its time, before its end",
                self._bundle.renewal,
            ),
        ):
            family = GaugeMetricFamily(
                f"avap_tls_certificate_{kind}_timestamp_seconds", meaning, labels=("certificate",)
            )
            for name, at in moments.items():
                family.add_metric((name,), at)
            yield family
        results = CounterMetricFamily("avap_tls_reloads", "Changes of the certificate files", labels=("result",))
        for result, count in self._results.items():
            results.add_metric((result,), count)
        yield results
        yield GaugeMetricFamily(
            "avap_tls_files_refused", "Whether the files hold what cannot be shown", int(self.refused)
        )


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
