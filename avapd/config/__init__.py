"""Settings: one declaration each yields the variable, the flag, the validation, the help and the README table.

A field of `Config` whose metadata is a `Setting` (declarations.py) is the declaration; nothing names a setting twice.
Secrets can be given as `NAME_FILE=/path` as well, have no flag for their value (argv is public), and are never printed.
`load` finds every problem before anything is started and reports all of them at once (exit code 78).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from avapd.config import keys, parsers
from avapd.config.declarations import ENGINES, ENVIRONMENTS, GUARDED, KEY_BYTES, NOTIFY_CHANNEL, SAMPLE_KEYS, Config
from avapd.config.setting import Setting
from avapd.errors import ConfigError
from avapd.wire.limits import Limits

__all__ = [
    "ENGINES", "ENVIRONMENTS", "KEY_BYTES", "NOTIFY_CHANNEL", "SAMPLE_KEYS", "Config", "load", "misspelt", "settings",
    "table",
]  # fmt: skip
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
    default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
    told = field.metadata["help"], default, False, field.metadata["seen"]
    return Setting((f"AVAPD_LIMIT_{field.name.upper()}",), parse, *told)


def load(environ: Mapping[str, str], overrides: Mapping[str, str] | None = None) -> Config:
    """Read the settings from `environ`; `overrides` (field name → text, from flags) win.

    Raises ConfigError that names every missing, malformed or contradictory setting at once.
    """
    overrides = overrides or {}
    values: dict[str, Any] = {}
    problems: list[str] = []
    malformed: set[str] = set()
    for name, setting in settings().items():
        try:
            text = _text(setting, environ, overrides.get(name))
            if text is not None:
                values[name] = setting.parse(text)
            elif setting.default_text == "required" and not (name == "api_keys" and _no_key_asked(environ, overrides)):
                or_file = f" (or {setting.variables[0]}_FILE)" if setting.secret else ""
                problems.append(f"{setting.variables[0]}{or_file} is required and not set")
        except ValueError as error:
            named = setting.variables[0] if name in overrides else _variable(setting, environ)
            problems.append(f"{named} {error}")
            malformed.add(name)
    problems += _contradictions(values) + _exposures(values, malformed)
    if problems:
        raise ConfigError(problems)
    values.setdefault("api_keys", ())
    limits = {name.removeprefix(_LIMIT): values.pop(name) for name in list(values) if name.startswith(_LIMIT)}
    return Config(**values, limits=Limits(**limits))


def _no_key_asked(environ: Mapping[str, str], overrides: Mapping[str, str]) -> bool:
    """Whether API_KEY is not required: there are keys beside it, or nobody is asked for one.

    What else the latter needs is for `_exposures` to say.
    """
    beside = overrides.get("api_keys_file") or environ.get("AVAPD_API_KEYS_FILE")
    return bool(beside) or _text(settings()["anonymous"], environ, overrides.get("anonymous")) == "on"


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
    if short and not _short(values):
        found.append(f"API_KEY is shorter than {KEY_BYTES} bytes; only AVAPD_ENV=development allows that")
    elif "api_keys" in values or values.get("api_keys_file"):
        try:
            keys.load(values.get("api_keys_file", ""), values.get("api_keys", ()), short=_short(values))
        except ValueError as error:
            found.append(f"{'AVAPD_API_KEYS_FILE' if values.get('api_keys_file') else 'API_KEY'}: {error}")
    if values.get("port", 50051) == values.get("admin_port", 9464):
        found.append("PORT and AVAPD_ADMIN_PORT are the same")
    if values.get("pre_drain_seconds", 1.0) > values.get("drain_seconds", 30.0):
        found.append("AVAPD_PRE_DRAIN_SECONDS is longer than AVAPD_DRAIN_SECONDS")
    return found


def _exposures(values: Mapping[str, Any], malformed: set[str]) -> list[str]:
    """What would leave the service, or its clients, less protected than was asked for."""
    found = []
    environment = values.get("environment", "production")
    names = {name: f"AVAPD_{name.upper()}" for name in ("tls_cert_file", "tls_key_file", "tls_client_ca_file")}
    given = [name for name in names if values.get(name)]
    if given and not {"tls_cert_file", "tls_key_file"} <= set(given):
        missing = [names[name] for name in ("tls_cert_file", "tls_key_file") if name not in given]
        found.append(f"{names[given[0]]} is set without {' and '.join(missing)}")
    elif (
        environment in GUARDED
        and not given
        and not values.get("insecure")
        and not malformed & {"environment", "insecure"}
    ):
        found.append(
            f"{environment} serves TLS (AVAPD_TLS_CERT_FILE and AVAPD_TLS_KEY_FILE) or, when AVAPD_INSECURE=1 asks for "
            "it, clear text; neither is set"
        )
    if values.get("anonymous") and not (environment == "development" and parsers.loopback(values.get("host", "[::]"))):
        found.append("AVAPD_ANONYMOUS is for AVAPD_ENV=development with AVAPD_HOST on loopback (127.0.0.1) only")
    mode = parsers.ssl_mode(values.get("database_url", ""))
    if values.get("database_ca_file") and mode not in {None, "verify-full"}:
        found.append(f"AVAPD_DATABASE_CA_FILE means sslmode=verify-full, DATABASE_URL says sslmode={mode}")
    health = values.get("health_port")
    if health and health in {values.get("port", 50051), values.get("admin_port", 9464)}:
        found.append("AVAPD_HEALTH_PORT is the same as PORT or AVAPD_ADMIN_PORT")
    return found


def _short(values: Mapping[str, Any]) -> bool:
    """Whether keys may be short."""
    return bool(values.get("environment") == "development")


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
    more = " beyond it a client sees |" if limits else ""
    rows = [f"| variable | default | meaning |{more}", f"|---|---|---|{'---|' if limits else ''}"]
    for field, setting in settings().items():
        if field.startswith(_LIMIT) != limits:
            continue
        names = " / ".join(f"`{name}`" for name in setting.variables)
        if setting.secret:
            names += f" (or `{setting.variables[0]}_FILE`)"
        rows.append(f"| {names} | {setting.default_text} | {setting.help} |{f' {setting.seen} |' if limits else ''}")
    return "\n".join(rows)
