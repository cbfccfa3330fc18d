"""Settings: one declaration each yields the variable, the flag, the validation, the help and the README table.

A field of `Config` whose metadata is a `Setting` is the declaration; nothing else names a setting twice.
Secrets can be given as `NAME_FILE=/path` as well, have no flag for their value (argv is public), and are never printed.
`load` finds every problem before anything is started and reports all of them at once (exit code 78).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from avapd.config import parsers
from avapd.errors import ConfigError
from avapd.wire.limits import Limits

ENVIRONMENTS: Final = ("production", "staging", "test", "development")
ENGINES: Final = ("wire", "grpcio")
KEY_BYTES: Final = 16
NOTIFY_CHANNEL: Final = "avapd_changed"
# Keys that stand in public samples: they work, with a loud WARN, since refusing them could stop a running platform.
SAMPLE_KEYS: Final = (
    "avap-secret-key", "change-me-change-me", "change-me-in-production", "changeme", "example", "secret-key",
    "supersecretkey123", "test-key", "your-api-key", "your-api-key-here", "your-secret-key-here",
)  # fmt: skip
_REQUIRED: Final = object()


class Setting(NamedTuple):
    """How one setting is read: its variables (the first is the canonical one), its parser and its help."""

    variables: tuple[str, ...]
    parse: Callable[[str], Any]
    help: str
    default_text: str
    secret: bool

    @property
    def flag(self) -> str:
        """The command-line flag: `--refresh-seconds`; for a secret the path of a file that holds it."""
        name = self.variables[0].lower().removeprefix("avapd_").replace("_", "-")
        return f"--{name}-file" if self.secret else f"--{name}"


def _setting(
    *variables: str,
    help: str,  # noqa: A002  # the field's name in click and argparse too
    parse: Callable[[str], Any] = str,
    default: Any = _REQUIRED,
    shown: str | None = None,
    secret: bool = False,
) -> Any:
    text = "required" if default is _REQUIRED else shown if shown is not None else str(default)
    metadata = {"setting": Setting(variables, parse, help, text, secret)}
    if default is _REQUIRED:
        return dataclasses.field(metadata=metadata, repr=not secret)
    return dataclasses.field(metadata=metadata, default=default, repr=not secret)


_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything an operator can set. Sizes are in bytes, times in seconds."""

    database_url: str = _setting(
        "DATABASE_URL", parse=parsers.database_url, secret=True, help="PostgreSQL connection string"
    )
    api_keys: tuple[str, ...] = _setting(
        "API_KEY",
        parse=parsers.api_keys,
        secret=True,
        help="key of the clients, or several separated by commas (for rotation); 16 bytes or more outside development",
    )
    signing_key: str | None = _setting(
        "SIGNING_KEY",
        "AVAP_INTERNAL_KEY",
        default=None,
        shown="unset",
        secret=True,
        help="when set, `code` is a package signed with this key",
    )
    host: str = _setting("AVAPD_HOST", default="[::]", help="address of the gRPC port; `[::]` is IPv6 and IPv4")
    port: int = _setting("PORT", parse=parsers.integer(1, 65535), default=50051, help="gRPC port")
    threadpool: int = _setting(
        "UV_THREADPOOL_SIZE", parse=parsers.integer(1, 1024), default=64, help="libuv thread pool, read by uvloop"
    )
    environment: str = _setting(
        "AVAPD_ENV",
        "NODE_ENV",
        parse=parsers.choice(*ENVIRONMENTS),
        default="production",
        help="`production`, `staging`, `test` or `development` (readable logs, reflection, short keys)",
    )
    workers: int = _setting(
        "AVAPD_WORKERS",
        parse=parsers.integer(1, 256),
        default=0,
        shown="usable CPUs",
        help="worker processes; by default the CPUs that affinity and the cgroup CPU quota leave",
    )
    engine: str = _setting("AVAPD_ENGINE", parse=parsers.choice(*ENGINES), default="wire", help="`wire` or `grpcio`")
    refresh_seconds: float = _setting(
        "AVAPD_REFRESH_SECONDS",
        parse=parsers.seconds(0.05, 86_400),
        default=60.0,
        shown="60",
        help="time between two polls of the table",
    )
    max_stale_seconds: float = _setting(
        "AVAPD_MAX_STALE_SECONDS",
        parse=parsers.seconds(0, 604_800),
        default=0.0,
        shown="off",
        help="health is NOT_SERVING when the table was not found well for so long; for who prefers none to old answers",
    )
    canary_seconds: float = _setting(
        "AVAPD_CANARY_SECONDS",
        parse=parsers.seconds(0, 30),
        default=2.0,
        shown="2",
        help="how long one worker serves a new generation alone, under watch, before the others get it; 0 for no time",
    )
    database_seconds: float = _setting(
        "AVAPD_DATABASE_SECONDS",
        parse=parsers.seconds(0.1, 600),
        default=10.0,
        shown="10",
        help="the one deadline of a poll, over connect, queries and close",
    )
    database_schema: str = _setting(
        "AVAPD_DATABASE_SCHEMA", parse=parsers.name, default="public", help="schema of `obex_dapl_functions`"
    )
    notify_channel: str = _setting(
        "AVAPD_NOTIFY_CHANNEL",
        parse=parsers.channel,
        default=NOTIFY_CHANNEL,
        help="channel that hurries the poll (`avapd db install-notify`), or `off`; it takes a connection for good",
    )
    admin_host: str = _setting("AVAPD_ADMIN_HOST", default="127.0.0.1", help="address of the admin port")
    admin_port: int = _setting(
        "AVAPD_ADMIN_PORT",
        parse=parsers.integer(1, 65535),
        default=9464,
        help="HTTP: `/metrics`, `/livez`, `/readyz`, `/status`",
    )
    admin_socket: str = _setting(
        "AVAPD_ADMIN_SOCKET",
        default="",
        shown="@avapd-admin-PORT",
        help="local socket for `avapd refresh`, `rollback` and others: a path, or `@name` for an abstract one",
    )
    snapshot_dir: str = _setting(
        "AVAPD_SNAPSHOT_DIR",
        default="",
        shown="unset",
        help="folder for the last good catalog, the history and the operator's decisions; they outlive a restart there",
    )
    drain_seconds: float = _setting(
        "AVAPD_DRAIN_SECONDS",
        parse=parsers.seconds(0, 3600),
        default=30.0,
        shown="30",
        help="longest wait for calls in flight on SIGTERM",
    )
    pre_drain_seconds: float = _setting(
        "AVAPD_PRE_DRAIN_SECONDS",
        parse=parsers.seconds(0, 600),
        default=1.0,
        shown="1",
        help="time between NOT_SERVING and the closing of the listener; part of the drain",
    )
    orphan_seconds: float = _setting(
        "AVAPD_ORPHAN_SECONDS",
        parse=parsers.seconds(0, 3600),
        default=15.0,
        shown="15",
        help="how long workers go on serving when the master is gone, before they drain",
    )
    silence_seconds: float = _setting(
        "AVAPD_SILENCE_SECONDS",
        parse=parsers.seconds(0.5, 600),
        default=2.0,
        shown="2",
        help="a worker without a heartbeat for so long gets SIGABRT, then SIGKILL; it is replaced within 3 s",
    )
    max_answer_bytes: int = _setting(
        "AVAPD_MAX_ANSWER_BYTES",
        parse=parsers.integer(_KIB, _GIB),
        default=32 * _MIB,
        help="largest unary answer; beyond it RESOURCE_EXHAUSTED",
    )
    max_definition_bytes: int = _setting(
        "AVAPD_MAX_DEFINITION_BYTES",
        parse=parsers.integer(_KIB, _GIB),
        default=16 * _MIB,
        help="rows with more code or interface are skipped and counted",
    )
    max_definitions: int = _setting(
        "AVAPD_MAX_DEFINITIONS",
        parse=parsers.integer(1, 1_000_000_000),
        default=2_000_000,
        help="a table of more rows is refused as a whole, before it is fetched",
    )
    max_catalog_bytes: int = _setting(
        "AVAPD_MAX_CATALOG_BYTES",
        parse=parsers.integer(_KIB, 64 * _GIB),
        default=_GIB,
        help="a larger table is refused as a whole, before it is fetched",
    )
    log_level: str = _setting(
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

    def warnings(self) -> list[str]:
        """What is allowed but should not stay so."""
        found = []
        if any(key.lower() in SAMPLE_KEYS for key in self.api_keys):
            found.append("API_KEY is a key from public samples: anyone can call this server")
        if self.signing_key is not None and self.signing_key.lower() in SAMPLE_KEYS:
            found.append("SIGNING_KEY is a key from public samples: anyone can sign packages")
        return found


_LIMIT: Final = "limit_"


def settings() -> dict[str, Setting]:
    """The declarations by field name, in the order of the tables; those of `limits` begin with `limit_`."""
    fields = dataclasses.fields(Config)
    own = {field.name: field.metadata["setting"] for field in fields if field.metadata}
    return own | {_LIMIT + field.name: _limit(field) for field in dataclasses.fields(Limits)}


def _limit(field: dataclasses.Field[Any]) -> Setting:
    """A limit of the engine as a setting: its declaration is in wire/limits.py."""
    low, high = field.metadata["low"], field.metadata["high"]
    parse: Callable[[str], Any] = (
        parsers.seconds(low, high) if isinstance(field.default, float) else parsers.integer(low, high)
    )
    return Setting((f"AVAPD_LIMIT_{field.name.upper()}",), parse, field.metadata["help"], f"{field.default:g}"
                   if isinstance(field.default, float) else str(field.default), secret=False)  # fmt: skip


def load(environ: Mapping[str, str], overrides: Mapping[str, str] | None = None) -> Config:
    """Read the settings from `environ`; `overrides` (field name → text, from flags) win.

    Raises ConfigError that names every missing, malformed or contradictory setting at once.
    """
    overrides = overrides or {}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, setting in settings().items():
        try:
            text = _text(setting, environ, overrides.get(name))
            if text is not None:
                values[name] = setting.parse(text)
            elif setting.default_text == "required":
                or_file = f" (or {setting.variables[0]}_FILE)" if setting.secret else ""
                problems.append(f"{setting.variables[0]}{or_file} is required and not set")
        except ValueError as error:
            named = setting.variables[0] if name in overrides else _variable(setting, environ)
            problems.append(f"{named} {error}")
    problems += _contradictions(values)
    if problems:
        raise ConfigError(problems)
    limits = {name.removeprefix(_LIMIT): values.pop(name) for name in list(values) if name.startswith(_LIMIT)}
    return Config(**values, limits=Limits(**limits))


def _variable(setting: Setting, environ: Mapping[str, str]) -> str:
    """The name the operator used: the first that is set, else the canonical one."""
    used = (name for name in setting.variables if environ.get(name) or (setting.secret and environ.get(f"{name}_FILE")))
    return next(used, setting.variables[0])


def _text(setting: Setting, environ: Mapping[str, str], override: str | None) -> str | None:
    """The text of a setting from flag, file or variable; a variable that is set but empty counts as unset."""
    if override is not None:
        return _read(override, setting.flag) if setting.secret else override
    for variable in setting.variables:
        value = environ.get(variable) or None
        path = environ.get(f"{variable}_FILE") if setting.secret else None
        if value and path:
            raise ValueError(f"is set twice, as {variable} and as {variable}_FILE; keep one")
        if path:
            return _read(path, f"{variable}_FILE")
        if value:
            return value
    return None


def _read(path: str, named_by: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ValueError(f"cannot be read: {named_by} names {path}: {reason}") from None
    if not text:
        raise ValueError(f"is empty: {named_by} names {path}")
    return text


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    found = []
    short = any(len(key) < KEY_BYTES for key in values.get("api_keys", ()))
    if short and values.get("environment", "production") != "development":
        found.append(f"API_KEY is shorter than {KEY_BYTES} bytes; only AVAPD_ENV=development allows that")
    if values.get("port", 50051) == values.get("admin_port", 9464):
        found.append("PORT and AVAPD_ADMIN_PORT are the same")
    if values.get("pre_drain_seconds", 1.0) > values.get("drain_seconds", 30.0):
        found.append("AVAPD_PRE_DRAIN_SECONDS is longer than AVAPD_DRAIN_SECONDS")
    return found


def misspelt(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each `AVAPD_` variable that is none of ours but looks much like one.

    Others are left alone: Kubernetes adds `AVAPD_…` variables of its own for a service called avapd.
    """
    known = [name for setting in settings().values() for name in (*setting.variables, f"{setting.variables[0]}_FILE")]
    return [
        f"{name} is not a setting; did you mean {close[0]}?"
        for name in sorted(environ)
        if name.startswith("AVAPD_") and name not in known
        if (close := difflib.get_close_matches(name, known, n=1, cutoff=0.85))
    ]


def table(*, limits: bool = False) -> str:
    """The settings, or the limits of the engine, as a Markdown table of the README."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for field, setting in settings().items():
        if field.startswith(_LIMIT) != limits:
            continue
        names = " / ".join(f"`{name}`" for name in setting.variables)
        if setting.secret:
            names += f" (or `{setting.variables[0]}_FILE`)"
        rows.append(f"| {names} | {setting.default_text} | {setting.help} |")
    return "\n".join(rows)
