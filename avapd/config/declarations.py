"""The settings, each declared once: the fields of `Config`."""

from __future__ import annotations

import dataclasses
import sys
from typing import Final
from urllib.parse import urlsplit

from avapd.config import parsers
from avapd.config.keys import KEY_BYTES, readable_by_others
from avapd.config.setting import setting
from avapd.wire.limits import Limits

__all__ = ["ENGINES", "ENVIRONMENTS", "KEY_BYTES", "NOTIFY_CHANNEL", "SAMPLE_KEYS", "Config"]
ENVIRONMENTS: Final = ("production", "staging", "test", "development")
# Where clear text must be asked for.
GUARDED: Final = ("production", "staging")
ENGINES: Final = ("wire", "grpcio")
SOURCES_SHOWN: Final = ("loopback", "on", "off")
NOTIFY_CHANNEL: Final = "avapd_changed"
# Keys that stand in public samples: they work, with a loud WARN, since refusing them could stop a running platform.
SAMPLE_KEYS: Final = (
    "avap-secret-key", "change-me-change-me", "change-me-in-production", "changeme", "example", "secret-key",
    "supersecretkey123", "test-key", "your-api-key", "your-api-key-here", "your-secret-key-here",
)  # fmt: skip

_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything an operator can set. Sizes are in bytes, times in seconds."""

    database_url: str = setting(
        "DATABASE_URL", parse=parsers.database_url, secret=True, help="PostgreSQL connection string"
    )
    api_keys: tuple[str, ...] = setting(
        "API_KEY",
        parse=parsers.api_keys,
        default=(),
        shown="required",
        secret=True,
        help="key of the clients, or several separated by commas (for rotation); 16 bytes or more outside development; "
        "not required with `AVAPD_API_KEYS_FILE`",
    )
    api_keys_file: str = setting(
        "AVAPD_API_KEYS_FILE",
        default="",
        shown="unset",
        help="file of more keys, each with a name and, if wanted, an end and a rate; read again within 2 s of a change",
    )
    signing_key: str | None = setting(
        "SIGNING_KEY",
        "AVAP_INTERNAL_KEY",
        default=None,
        shown="unset",
        secret=True,
        help="when set, `code` is a package signed with this key",
    )
    host: str = setting("AVAPD_HOST", default="[::]", help="address of the gRPC port; `[::]` is IPv6 and IPv4")
    port: int = setting("PORT", parse=parsers.integer(1, 65535), default=50051, help="gRPC port")
    tls_cert_file: str = setting(
        "AVAPD_TLS_CERT_FILE",
        default="",
        shown="unset",
        help="PEM file of the server's certificate and what stands above it; read again when it changes",
    )
    tls_key_file: str = setting(
        "AVAPD_TLS_KEY_FILE", default="", shown="unset", help="PEM file of its private key, without a password"
    )
    tls_client_ca_file: str = setting(
        "AVAPD_TLS_CLIENT_CA_FILE",
        default="",
        shown="unset",
        help="when set, clients must show a certificate that one of these authorities signed (mTLS)",
    )
    insecure: bool = setting(
        "AVAPD_INSECURE",
        parse=parsers.consent,
        default=False,
        shown="0",
        help="`1` lets production and staging serve in clear text",
    )
    health_port: int = setting(
        "AVAPD_HEALTH_PORT",
        parse=parsers.integer(1, 65535),
        default=0,
        shown="unset",
        help="port for health alone, always in clear text: for probes that speak no TLS",
    )
    threadpool: int = setting(
        "UV_THREADPOOL_SIZE", parse=parsers.integer(1, 1024), default=64, help="libuv thread pool, read by uvloop"
    )
    environment: str = setting(
        "AVAPD_ENV",
        "NODE_ENV",
        parse=parsers.choice(*ENVIRONMENTS),
        default="production",
        help="`production`, `staging`, `test` or `development`; see [run modes](avapd/README.md#run-modes)",
    )
    anonymous: bool = setting(
        "AVAPD_ANONYMOUS",
        parse=parsers.switch,
        default=False,
        shown="off",
        help="`on`: whoever reaches the port needs no key; in development only, on a loopback address only",
    )
    seed: int = setting(
        "AVAPD_SEED",
        parse=parsers.integer(0, 2**31),
        default=0,
        help="what every random spread of time begins from in `test`",
    )
    workers: int = setting(
        "AVAPD_WORKERS",
        parse=parsers.integer(1, 256),
        default=0,
        shown="usable CPUs",
        help="worker processes; by default the CPUs that affinity and the cgroup CPU quota leave",
    )
    engine: str = setting("AVAPD_ENGINE", parse=parsers.choice(*ENGINES), default="wire", help="`wire` or `grpcio`")
    refresh_seconds: float = setting(
        "AVAPD_REFRESH_SECONDS",
        parse=parsers.seconds(0.05, 86_400),
        default=60.0,
        shown="60",
        help="time between two polls of the table",
    )
    max_stale_seconds: float = setting(
        "AVAPD_MAX_STALE_SECONDS",
        parse=parsers.seconds(0, 604_800),
        default=0.0,
        shown="off",
        help="health is NOT_SERVING when the table was not found well for so long; for who prefers none to old answers",
    )
    canary_seconds: float = setting(
        "AVAPD_CANARY_SECONDS",
        parse=parsers.seconds(0, 30),
        default=2.0,
        shown="2",
        help="how long one worker serves a new generation alone, under watch, before the others get it; 0 for no time",
    )
    database_seconds: float = setting(
        "AVAPD_DATABASE_SECONDS",
        parse=parsers.seconds(0.1, 600),
        default=10.0,
        shown="10",
        help="the one deadline of a poll, over connect, queries and close",
    )
    database_schema: str = setting(
        "AVAPD_DATABASE_SCHEMA", parse=parsers.name, default="public", help="schema of `obex_dapl_functions`"
    )
    database_ca_file: str = setting(
        "AVAPD_DATABASE_CA_FILE",
        default="",
        shown="unset",
        help="PEM file of the database's authority; when set, the connection is `sslmode=verify-full`",
    )
    notify_channel: str = setting(
        "AVAPD_NOTIFY_CHANNEL",
        parse=parsers.channel,
        default=NOTIFY_CHANNEL,
        help="channel that hurries the poll (`avapd db install-notify`), or `off`; it takes a connection for good",
    )
    admin_host: str = setting("AVAPD_ADMIN_HOST", default="127.0.0.1", help="address of the admin port")
    admin_port: int = setting(
        "AVAPD_ADMIN_PORT",
        parse=parsers.integer(1, 65535),
        default=9464,
        help="HTTP: `/status` (a page in a browser), `/metrics`, `/livez`, `/readyz`",
    )
    admin_sources: str = setting(
        "AVAPD_ADMIN_SOURCES",
        parse=parsers.choice(*SOURCES_SHOWN),
        default="loopback",
        help="whether the admin port shows code and interface of what changed: `loopback` (to this host), `on`, `off`",
    )
    admin_socket: str = setting(
        "AVAPD_ADMIN_SOCKET",
        default="",
        shown="@avapd-admin-PORT",
        help="local socket for `avapd refresh`, `rollback` and others: a path, or `@name` for an abstract one",
    )
    snapshot_dir: str = setting(
        "AVAPD_SNAPSHOT_DIR",
        default="",
        shown="unset",
        help="folder for the last good catalog, the history and the operator's decisions; they outlive a restart there",
    )
    drain_seconds: float = setting(
        "AVAPD_DRAIN_SECONDS",
        parse=parsers.seconds(0, 3600),
        default=30.0,
        shown="30",
        help="longest wait for calls in flight on SIGTERM",
    )
    pre_drain_seconds: float = setting(
        "AVAPD_PRE_DRAIN_SECONDS",
        parse=parsers.seconds(0, 600),
        default=1.0,
        shown="1",
        help="time between NOT_SERVING and the closing of the listener; part of the drain",
    )
    orphan_seconds: float = setting(
        "AVAPD_ORPHAN_SECONDS",
        parse=parsers.seconds(0, 3600),
        default=15.0,
        shown="15",
        help="how long workers go on serving when the master is gone, before they drain",
    )
    silence_seconds: float = setting(
        "AVAPD_SILENCE_SECONDS",
        parse=parsers.seconds(0.5, 600),
        default=2.0,
        shown="2",
        help="a worker without a heartbeat for so long gets SIGABRT, then SIGKILL; it is replaced within 3 s",
    )
    max_answer_bytes: int = setting(
        "AVAPD_MAX_ANSWER_BYTES",
        parse=parsers.integer(_KIB, _GIB),
        default=32 * _MIB,
        help="largest unary answer; beyond it RESOURCE_EXHAUSTED",
    )
    max_definition_bytes: int = setting(
        "AVAPD_MAX_DEFINITION_BYTES",
        parse=parsers.integer(_KIB, _GIB),
        default=16 * _MIB,
        help="rows with more code or interface are skipped and counted",
    )
    max_definitions: int = setting(
        "AVAPD_MAX_DEFINITIONS",
        parse=parsers.integer(1, 1_000_000_000),
        default=2_000_000,
        help="a table of more rows is refused as a whole, before it is fetched",
    )
    max_catalog_bytes: int = setting(
        "AVAPD_MAX_CATALOG_BYTES",
        parse=parsers.integer(_KIB, 64 * _GIB),
        default=_GIB,
        help="a larger table is refused as a whole, before it is fetched",
    )
    code_grammar: int = setting(
        "AVAPD_CODE_GRAMMAR",
        parse=parsers.grammar,
        default=sys.version_info.minor,
        shown="of this Python",
        help="version of Python, `3.8` say, as which code must compile to be served, or `off`",
    )
    check_interface: bool = setting(
        "AVAPD_CHECK_INTERFACE",
        parse=parsers.switch,
        default=True,
        shown="on",
        help="whether an interface must be a JSON array of objects to be served",
    )
    start_check_seconds: float = setting(
        "AVAPD_START_CHECK_SECONDS",
        parse=parsers.seconds(0, 3600),
        default=0.3,
        help="how long a start checks definitions that no earlier run knew; the rest is checked while it is served",
    )
    audit_sink_url: str = setting(
        "AVAPD_AUDIT_SINK_URL",
        parse=parsers.sink_url,
        default="",
        shown="unset",
        secret=True,
        help="HTTP(S) address that gets the audit events as lines of JSON, by POST; they are in the log in any case",
    )
    audit_sink_token: str = setting(
        "AVAPD_AUDIT_SINK_TOKEN",
        parse=parsers.token,
        default="",
        shown="unset",
        secret=True,
        help="bearer token for it",
    )
    echo_request_id: bool = setting(
        "AVAPD_ECHO_REQUEST_ID",
        parse=parsers.switch,
        default=True,
        shown="on",
        help="whether `x-request-id` of a call is in the headers of its answer, and in the log when it fails",
    )
    otel: bool = setting(
        "AVAPD_OTEL",
        parse=parsers.switch,
        default=False,
        shown="off",
        help="traces and metrics by OTLP over HTTP; where to is said by the standard `OTEL_` variables; extra `otel`",
    )
    otel_sample_ratio: float = setting(
        "AVAPD_OTEL_SAMPLE_RATIO",
        parse=parsers.seconds(0, 1),
        default=0.0,
        shown="0",
        help="share of the calls that are traced though their `traceparent` does not ask for it, where they have none",
    )
    log_level: str = setting(
        "AVAPD_LOG_LEVEL",
        parse=parsers.choice("DEBUG", "INFO", "WARN", "ERROR"),
        default="INFO",
        help="lowest level that is logged",
    )
    limits: Limits = dataclasses.field(default=Limits())

    @property
    def development(self) -> bool:
        """Readable logs, reflection, short keys."""
        return self.environment == "development"

    @property
    def tls(self) -> bool:
        """Whether the gRPC port speaks TLS."""
        return bool(self.tls_cert_file)

    def warnings(self) -> list[str]:
        """What is allowed but should not stay so."""
        found = []
        if any(key.lower() in SAMPLE_KEYS for key in self.api_keys):
            found.append("API_KEY is a key from public samples: anyone can call this server")
        if self.api_keys_file and readable_by_others(self.api_keys_file):
            found.append("the file of AVAPD_API_KEYS_FILE can be read by every user of this host")
        if self.signing_key is not None and self.signing_key.lower() in SAMPLE_KEYS:
            found.append("SIGNING_KEY is a key from public samples: anyone can sign packages")
        if self.insecure and self.tls:
            found.append(
                "AVAPD_INSECURE=1 is not needed: TLS is on; without it a lost certificate cannot end in clear text"
            )
        elif self.environment in GUARDED and not self.tls:
            found.append("AVAPD_INSECURE=1: keys and definitions travel in clear text")
        if self.environment == "production" and not self.database_ca_file and not parsers.verified(self.database_url):
            found.append(
                "the connection to the database is not verified (sslmode below verify-full): whoever answers gets the "
                "password; set AVAPD_DATABASE_CA_FILE"
            )
        if self.audit_sink_url.startswith("http://") and urlsplit(self.audit_sink_url).hostname not in _LOOPBACK:
            found.append("AVAPD_AUDIT_SINK_URL is http: events and token can be read on their way")
        return found
