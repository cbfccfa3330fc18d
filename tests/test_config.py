"""Settings: defaults, malformed values, secrets from files, all problems at once, and never a secret in a message."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avapd import config
from avapd.config import Config
from avapd.errors import ConfigError
from avapd.wire.limits import Limits

URL = "postgresql://reader:p%40ss@db.example:5432/avap"
KEY = "a-key-of-enough-length"
BARE = {"DATABASE_URL": URL, "API_KEY": KEY}
GOOD = {**BARE, "AVAPD_INSECURE": "1"}
# What a setting that is changed alone needs beside it, or must not have.
BESIDE: dict[str, dict[str, str]] = {
    "tls_cert_file": {"AVAPD_TLS_KEY_FILE": "/key.pem"},
    "tls_key_file": {"AVAPD_TLS_CERT_FILE": "/cert.pem"},
    "tls_client_ca_file": {"AVAPD_TLS_CERT_FILE": "/cert.pem", "AVAPD_TLS_KEY_FILE": "/key.pem"},
    "insecure": {"AVAPD_ENV": "test", "AVAPD_INSECURE": ""},
    "anonymous": {"AVAPD_ENV": "development", "AVAPD_HOST": "127.0.0.1"},
}
MIB = 1 << 20
INTEGERS = ["", " ", "x", "1.5", "-1", "+1", "1e3", " 80", "80 ", "80\n", "0x50", "٣", "9" * 18, "9" * 5000]
SECONDS = ["", "x", "-1", "1e3", ".5", "5.", "nan", "inf", "1 s", "1,5", "٣", "9" * 5000, "0.1234567"]
KEYS_FILE = str(Path(__file__).parents[1] / "deploy" / "api-keys.toml")
# field → (variable, default, a good text, its value, texts that are refused)
CASES: dict[str, tuple[str, Any, str, Any, list[str]]] = {
    "api_keys_file": ("AVAPD_API_KEYS_FILE", "", KEYS_FILE, KEYS_FILE, []),
    "host": ("AVAPD_HOST", "[::]", "127.0.0.1", "127.0.0.1", []),
    "port": ("PORT", 50051, "8080", 8080, [*INTEGERS, "0", "65536"]),
    "tls_cert_file": ("AVAPD_TLS_CERT_FILE", "", "/cert.pem", "/cert.pem", []),
    "tls_key_file": ("AVAPD_TLS_KEY_FILE", "", "/key.pem", "/key.pem", []),
    "tls_client_ca_file": ("AVAPD_TLS_CLIENT_CA_FILE", "", "/ca.pem", "/ca.pem", []),
    "insecure": ("AVAPD_INSECURE", False, "1", True, ["", "2", "yes", "on", "true", " 1"]),
    "health_port": ("AVAPD_HEALTH_PORT", 0, "8080", 8080, [*INTEGERS, "0", "65536"]),
    "anonymous": ("AVAPD_ANONYMOUS", False, "on", True, ["", "true", "1", "ON"]),
    "seed": ("AVAPD_SEED", 0, "7", 7, [*INTEGERS, "2147483649"]),
    "database_ca_file": ("AVAPD_DATABASE_CA_FILE", "", "/ca.pem", "/ca.pem", []),
    "threadpool": ("UV_THREADPOOL_SIZE", 64, "4", 4, [*INTEGERS, "0", "1025"]),
    "environment": ("AVAPD_ENV", "production", "test", "test", ["", "prod", "Production", "test "]),
    "workers": ("AVAPD_WORKERS", 0, "3", 3, [*INTEGERS, "0", "257"]),
    "engine": ("AVAPD_ENGINE", "wire", "grpcio", "grpcio", ["", "nginx", "GRPCIO"]),
    "refresh_seconds": ("AVAPD_REFRESH_SECONDS", 60.0, "0.5", 0.5, [*SECONDS, "0", "0.04", "86401"]),
    "max_stale_seconds": ("AVAPD_MAX_STALE_SECONDS", 0.0, "300", 300.0, [*SECONDS, "604801"]),
    "canary_seconds": ("AVAPD_CANARY_SECONDS", 2.0, "0", 0.0, [*SECONDS, "31"]),
    "database_seconds": ("AVAPD_DATABASE_SECONDS", 10.0, "2", 2.0, [*SECONDS, "0", "601"]),
    "database_schema": (
        "AVAPD_DATABASE_SCHEMA", "public", "avap_1", "avap_1",
        ["", "a b", 'a"b', "1a", "a.b", "ñ", "a;", "a" * 64, "a\n"],
    ),
    "notify_channel": (
        "AVAPD_NOTIFY_CHANNEL", "avapd_changed", "off", "", ["", "a b", "a'b", "1a", "ñ", "a;", "a" * 64],
    ),
    "admin_socket": ("AVAPD_ADMIN_SOCKET", "", "@avapd", "@avapd", []),
    "snapshot_dir": ("AVAPD_SNAPSHOT_DIR", "", "/var/lib/avapd", "/var/lib/avapd", []),
    "max_definitions": ("AVAPD_MAX_DEFINITIONS", 2_000_000, "10", 10, [*INTEGERS, "0", "1000000001"]),
    "admin_host": ("AVAPD_ADMIN_HOST", "127.0.0.1", "0.0.0.0", "0.0.0.0", []),
    "admin_port": ("AVAPD_ADMIN_PORT", 9464, "9000", 9000, [*INTEGERS, "0", "65536"]),
    "admin_sources": ("AVAPD_ADMIN_SOURCES", "loopback", "off", "off", ["", "yes", "Loopback"]),
    "drain_seconds": ("AVAPD_DRAIN_SECONDS", 30.0, "5", 5.0, [*SECONDS, "3601"]),
    "pre_drain_seconds": ("AVAPD_PRE_DRAIN_SECONDS", 1.0, "0", 0.0, [*SECONDS, "601"]),
    "orphan_seconds": ("AVAPD_ORPHAN_SECONDS", 15.0, "0", 0.0, [*SECONDS, "3601"]),
    "silence_seconds": ("AVAPD_SILENCE_SECONDS", 2.0, "10", 10.0, [*SECONDS, "0.4", "601"]),
    "max_answer_bytes": ("AVAPD_MAX_ANSWER_BYTES", 32 * MIB, "1024", 1024, [*INTEGERS, "1023"]),
    "max_definition_bytes": ("AVAPD_MAX_DEFINITION_BYTES", 16 * MIB, "1024", 1024, [*INTEGERS, "1023"]),
    "max_catalog_bytes": ("AVAPD_MAX_CATALOG_BYTES", 1 << 30, "1024", 1024, [*INTEGERS, "1023"]),
    "code_grammar": (
        "AVAPD_CODE_GRAMMAR", sys.version_info.minor, "off", 0, ["", "on", "3", "3.6", "3.99", "2.7", "3.8.1", "py3"],
    ),
    "check_interface": ("AVAPD_CHECK_INTERFACE", True, "off", False, ["", "true", "1", "ON"]),
    "start_check_seconds": ("AVAPD_START_CHECK_SECONDS", 0.3, "0", 0.0, [*SECONDS, "3601"]),
    "echo_request_id": ("AVAPD_ECHO_REQUEST_ID", True, "off", False, ["", "true", "1", "ON"]),
    "otel": ("AVAPD_OTEL", False, "on", True, ["", "true", "1", "ON"]),
    "otel_sample_ratio": ("AVAPD_OTEL_SAMPLE_RATIO", 0.0, "0.25", 0.25, [*SECONDS, "1.5"]),
    "log_level": ("AVAPD_LOG_LEVEL", "INFO", "DEBUG", "DEBUG", ["", "debug", "TRACE"]),
}  # fmt: skip
for _limit in dataclasses.fields(Limits):  # each is declared in wire/limits.py
    _low = _limit.metadata["low"]
    _text = f"{_low:g}" if isinstance(_limit.default, float) else str(_low)
    _refused = SECONDS if isinstance(_limit.default, float) else INTEGERS
    CASES[f"limit_{_limit.name}"] = (f"AVAPD_LIMIT_{_limit.name.upper()}", _limit.default, _text, _low, _refused)
SECRETS = {
    "database_url": "DATABASE_URL", "api_keys": "API_KEY", "signing_key": "SIGNING_KEY",
    "audit_sink_url": "AVAPD_AUDIT_SINK_URL", "audit_sink_token": "AVAPD_AUDIT_SINK_TOKEN",
}  # fmt: skip
# Wherever a secret stands below, `MARK` is in it.
MARK = "s3cr3t"
secret_texts = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=40).map(MARK.__add__)


def value_of(loaded: Config, field: str) -> Any:
    """A setting or a limit."""
    return (
        getattr(loaded.limits, field.removeprefix("limit_")) if field.startswith("limit_") else getattr(loaded, field)
    )


def problems(environ: dict[str, str], overrides: dict[str, str] | None = None) -> list[str]:
    """What is wrong with these settings."""
    with pytest.raises(ConfigError) as caught:
        config.load(environ, overrides)
    return caught.value.problems


# --- every setting ------------------------------------------------------------------------------------------


def test_the_cases_of_this_file_are_all_settings() -> None:
    """No setting goes untested."""
    assert set(CASES) | set(SECRETS) == set(config.settings())
    assert {name for name in config.settings() if not name.startswith("limit_")} | {"limits"} == {
        field.name for field in dataclasses.fields(Config)
    }


@pytest.mark.parametrize("field", CASES)
def test_a_setting_has_a_default_a_variable_and_a_flag(field: str) -> None:
    """Unset and empty mean the default; the variable is read; the flag wins over it."""
    variable, default, text, value, _ = CASES[field]
    good = {**GOOD, **({"AVAPD_ENV": "test", "AVAPD_INSECURE": ""} if field == "insecure" else {})}
    assert value_of(config.load(good), field) == default
    assert value_of(config.load({**good, variable: ""}), field) == default
    good |= BESIDE.get(field, {})
    assert value_of(config.load({**good, variable: text}), field) == value
    assert value_of(config.load({**good, variable: "malformed"}, {field: text}), field) == value


@pytest.mark.parametrize(("field", "text"), [(field, text) for field, case in CASES.items() for text in case[4]])
def test_a_malformed_value_is_refused_by_the_name_of_its_variable(field: str, text: str) -> None:
    """Each is one problem that begins with the variable, whether it came from there or from the flag."""
    variable = CASES[field][0]
    for environ, overrides in (({variable: text}, {}), ({}, {field: text})):
        if text or overrides:
            (problem,) = problems({**GOOD, **environ}, overrides)
            assert problem.startswith(f"{variable} ")


@pytest.mark.parametrize("field", CASES)
def test_the_range_a_refusal_names_is_the_range_that_is_taken(field: str) -> None:
    """Both ends of a range that a message states are accepted."""
    variable, _, _, _, refused = CASES[field]
    for text in refused:
        words = (problems(GOOD, {field: text})[0]).split()
        if "from" in words:
            low, high = words[words.index("from") + 1], words[words.index("to") + 1]
            for end in (low, high):
                room = {"AVAPD_DRAIN_SECONDS": "3600"} if field == "pre_drain_seconds" else {}
                calm = {"AVAPD_PRE_DRAIN_SECONDS": "0"} if field == "drain_seconds" else {}
                assert value_of(config.load({**GOOD, **room, **calm, variable: end}), field) == float(end)
            return


def test_the_table_names_every_variable() -> None:
    """The README's table comes from the declarations, and every row has three cells, that of a limit four."""
    own, limits = config.table().splitlines(), config.table(limits=True).splitlines()
    lines = own + limits
    assert len(lines) == 4 + len(config.settings())
    assert {line.replace("\\|", "").count("|") for line in own} == {4}
    assert {line.replace("\\|", "").count("|") for line in limits} == {5}
    for setting in config.settings().values():
        assert all(any(f"`{variable}`" in line for line in lines) for variable in setting.variables)


def test_flags_are_unique_and_none_takes_a_secret() -> None:
    """A command line is public: a secret's flag is the path of a file."""
    found = config.settings()
    assert len({setting.flag for setting in found.values()}) == len(found)
    assert found["port"].flag == "--port"
    assert found["refresh_seconds"].flag == "--refresh-seconds"
    for field in SECRETS:
        assert found[field].secret
        assert found[field].flag.endswith("-file")


def test_settings_cannot_change_after_the_start() -> None:
    """A loaded configuration is frozen."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.load(GOOD).port = 1  # type: ignore[misc]


# --- what is required -----------------------------------------------------------------------------------------


def test_all_problems_are_told_at_once() -> None:
    """The operator mends everything in one go."""
    found = problems({"PORT": "x", "AVAPD_WORKERS": "0", "NODE_ENV": "x", "AVAPD_LOG_LEVEL": "x"})
    assert len(found) == 6
    for variable in ("DATABASE_URL", "API_KEY", "PORT", "AVAPD_WORKERS", "AVAPD_LOG_LEVEL"):
        assert any(variable in problem for problem in found)


@pytest.mark.parametrize("variable", ["DATABASE_URL", "API_KEY"])
@pytest.mark.parametrize("empty", [None, ""])
def test_what_is_required_may_not_be_missing_or_empty(variable: str, empty: str | None) -> None:
    """The message names the variable and its file form."""
    environ = {name: text for name, text in GOOD.items() if name != variable}
    (problem,) = problems(environ if empty is None else {**environ, variable: empty})
    assert problem == f"{variable} (or {variable}_FILE) is required and not set"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h/db",
        "postgres://u:p@h/db",
        "postgresql://u@[::1]:5432/db?sslmode=verify-full",
        "postgresql://u@/db?host=/run/postgresql&port=5433",
        "postgresql://u:p@h1:5432,h2:5433/db?target_session_attrs=primary",
    ],
)
def test_connection_strings_of_postgresql_are_taken_as_they_are(url: str) -> None:
    """Unix sockets, IPv6, options and several hosts are for PostgreSQL to understand."""
    assert config.load({**GOOD, "DATABASE_URL": url}).database_url == url


@pytest.mark.parametrize(
    "url",
    ["x", "h:5432", "mysql://h/db", "postgresql:", "postgresql://", "postgresql:///db", "postgresql://u:p#x@h/db", "http://h"]
)  # fmt: skip
def test_what_is_no_connection_string_is_refused(url: str) -> None:
    """Before anything is started."""
    (problem,) = problems({**GOOD, "DATABASE_URL": url})
    assert problem.startswith("DATABASE_URL ")


# --- environments and keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["AVAPD_ENV", "NODE_ENV"])
@pytest.mark.parametrize("name", config.ENVIRONMENTS)
def test_the_environment_has_two_names(variable: str, name: str) -> None:
    """AVAPD_ENV and the platform's NODE_ENV; ours wins."""
    loaded = config.load({**GOOD, variable: name})
    assert loaded.environment == name
    assert loaded.development is (name == "development")
    assert config.load({**GOOD, "AVAPD_ENV": "test", "NODE_ENV": name}).environment == "test"


def test_a_problem_is_told_by_the_name_the_operator_used() -> None:
    """Who set NODE_ENV is not sent looking for AVAPD_ENV."""
    (problem,) = problems({**GOOD, "NODE_ENV": "prod"})
    assert problem.startswith("NODE_ENV ")


@pytest.mark.parametrize("environment", config.ENVIRONMENTS)
@pytest.mark.parametrize(
    ("keys", "short"),
    [("k" * 15, True), ("k" * 16, False), (f"{KEY},short", True), (f"short, {KEY}", True), (f"{KEY},{KEY}2", False)],
)
def test_short_keys_are_for_development_only(environment: str, keys: str, short: bool) -> None:
    """Every key of the list has at least 16 bytes everywhere else."""
    environ = {**GOOD, "API_KEY": keys, "AVAPD_ENV": environment}
    if not short or environment == "development":
        assert len(config.load(environ).api_keys) == keys.count(",") + 1
    else:
        (problem,) = problems(environ)
        assert problem.startswith("API_KEY is shorter than 16 bytes")


def test_several_keys_are_separated_by_commas() -> None:
    """Blanks around them and empty places between them do not count."""
    assert config.load({**GOOD, "API_KEY": f" {KEY} ,, {KEY}2,"}).api_keys == (KEY, f"{KEY}2")


@pytest.mark.parametrize(
    "keys", [",", " , ", f"{KEY} {KEY}", f"{KEY}\n{KEY}", f"{KEY}\t{KEY}", f"{KEY}ñ", f"{KEY}\x7f", f"\x00{KEY}"]
)
def test_a_key_that_cannot_be_a_header_is_refused(keys: str) -> None:
    """It could never be sent, so it is an error of the operator."""
    (problem,) = problems({**GOOD, "API_KEY": keys})
    assert problem.startswith("API_KEY ")


@pytest.mark.parametrize("variable", ["SIGNING_KEY", "AVAP_INTERNAL_KEY"])
def test_the_signing_key_has_two_names(tmp_path: Path, variable: str) -> None:
    """SIGNING_KEY and the platform's AVAP_INTERNAL_KEY, each as a file too; there is no built-in key."""
    assert config.load(GOOD).signing_key is None
    assert config.load({**GOOD, variable: ""}).signing_key is None
    assert config.load({**GOOD, variable: "sign here"}).signing_key == "sign here"
    path = tmp_path / "key"
    path.write_text("from file\n", encoding="utf-8")
    assert config.load({**GOOD, f"{variable}_FILE": str(path)}).signing_key == "from file"


def test_the_canonical_name_of_the_signing_key_wins() -> None:
    """Both set is the platform's habit, not an error."""
    assert config.load({**GOOD, "AVAP_INTERNAL_KEY": "b", "SIGNING_KEY": "a"}).signing_key == "a"


def test_sample_keys_are_warned_of() -> None:
    """Keys of public samples work in development, loudly, and the warning does not repeat them."""
    environ = {**BARE, "AVAPD_ENV": "development", "API_KEY": "Avap-Secret-Key", "SIGNING_KEY": "changeme"}
    warnings = config.load(environ).warnings()
    assert [warning.split()[0] for warning in warnings] == ["API_KEY", "SIGNING_KEY"]
    assert not any(key in warning.lower() for key in config.SAMPLE_KEYS for warning in warnings if "-" in key)
    assert config.load({**GOOD, "AVAPD_ENV": "test"}).warnings() == []


# --- clear text and TLS -----------------------------------------------------------------------------------------

CERTIFICATE = {"AVAPD_TLS_CERT_FILE": "/cert.pem", "AVAPD_TLS_KEY_FILE": "/key.pem"}


@pytest.mark.parametrize("environment", config.ENVIRONMENTS)
def test_production_and_staging_serve_clear_text_only_when_asked(environment: str) -> None:
    """Without TLS and without AVAPD_INSECURE=1 both are named; development and test need neither."""
    bare = {**BARE, "AVAPD_ENV": environment}
    if environment in {"development", "test"}:
        assert not config.load(bare).tls
    else:
        for refused in ("", "0"):
            (problem,) = problems({**bare, "AVAPD_INSECURE": refused})
            assert {"AVAPD_TLS_CERT_FILE", "AVAPD_TLS_KEY_FILE", "AVAPD_INSECURE=1"} <= set(
                re.findall(r"[A-Z_]+(?:=1)?", problem)
            )
    assert config.load({**bare, "AVAPD_INSECURE": "1"}).insecure
    assert config.load({**bare, **CERTIFICATE}).tls


@pytest.mark.parametrize("lonely", ["AVAPD_TLS_CERT_FILE", "AVAPD_TLS_KEY_FILE", "AVAPD_TLS_CLIENT_CA_FILE"])
def test_a_certificate_and_its_key_go_together(lonely: str) -> None:
    """Half of it is not TLS, and must not end in clear text."""
    (problem,) = problems({**GOOD, lonely: "/x.pem"})
    assert problem.startswith(f"{lonely} is set without ")
    assert all(name in problem for name in CERTIFICATE)


def test_clear_text_is_warned_of_where_it_was_asked_for() -> None:
    """In production and staging; and the permission is, where TLS makes it useless."""
    for environment, certificate, words in (
        ("production", {}, "clear text"),
        ("staging", {}, "clear text"),
        ("production", CERTIFICATE, "not needed"),
    ):
        url = f"{URL}?sslmode=verify-full"
        (warning,) = config.load({**GOOD, **certificate, "AVAPD_ENV": environment, "DATABASE_URL": url}).warnings()
        assert warning.startswith("AVAPD_INSECURE=1")
        assert words in warning
    assert config.load({**GOOD, "AVAPD_ENV": "test"}).warnings() == []


@pytest.mark.parametrize(
    ("url", "verified"),
    [
        ("postgresql://u@h/db", False),
        ("postgresql://u@127.0.0.1/db?sslmode=disable", False),
        ("postgresql://u@h/db?sslmode=require", False),
        ("postgresql://u@h/db?sslmode=verify-ca&sslrootcert=/ca.pem", False),
        ("postgresql://u@h/db?sslmode=verify-full", True),
        ("postgresql://u@/db?host=/run/postgresql", True),
        ("postgresql://u@/db?host=db.example", False),
    ],
)
def test_a_database_that_proves_nothing_is_warned_of_in_production(url: str, verified: bool) -> None:
    """Anything below verify-full over a network; a Unix socket is no network."""
    good = {**BARE, **CERTIFICATE, "DATABASE_URL": url}
    assert [warning for warning in config.load(good).warnings() if "verify-full" in warning] == (
        [] if verified else config.load(good).warnings()
    )
    assert bool(config.load(good).warnings()) is not verified
    assert config.load({**good, "AVAPD_ENV": "staging"}).warnings() == []
    if "sslmode" not in url:
        assert config.load({**good, "AVAPD_DATABASE_CA_FILE": "/ca.pem"}).warnings() == []


def test_an_authority_of_the_database_is_not_weakened_by_the_url() -> None:
    """AVAPD_DATABASE_CA_FILE means verify-full; a URL that says less contradicts it."""
    for mode in ("disable", "prefer", "require", "verify-ca"):
        (problem,) = problems({**GOOD, "AVAPD_DATABASE_CA_FILE": "/ca.pem", "DATABASE_URL": f"{URL}?sslmode={mode}"})
        assert problem.startswith("AVAPD_DATABASE_CA_FILE ")
    url = f"{URL}?sslmode=verify-full"
    assert config.load({**GOOD, "AVAPD_DATABASE_CA_FILE": "/ca.pem", "DATABASE_URL": url}).database_url == url


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "::1", "127.8.8.8"])
def test_development_on_loopback_may_do_without_a_key(host: str) -> None:
    """Asked for by AVAPD_ANONYMOUS: then API_KEY is not required."""
    environ = {"DATABASE_URL": URL, "AVAPD_ENV": "development", "AVAPD_HOST": host, "AVAPD_ANONYMOUS": "on"}
    loaded = config.load(environ)
    assert loaded.anonymous
    assert loaded.api_keys == ()


@pytest.mark.parametrize("environment", config.ENVIRONMENTS)
@pytest.mark.parametrize("host", ["[::]", "0.0.0.0", "10.0.0.1", "db.example", "127.0.0.1"])
def test_nobody_else_may_do_without_a_key(environment: str, host: str) -> None:
    """Elsewhere, and reachable from elsewhere, AVAPD_ANONYMOUS is refused."""
    environ = {**GOOD, "AVAPD_ENV": environment, "AVAPD_HOST": host, "AVAPD_ANONYMOUS": "on"}
    if (environment, host) == ("development", "127.0.0.1"):
        assert config.load(environ).anonymous
        return
    (problem,) = problems(environ)
    assert problem.startswith("AVAPD_ANONYMOUS ")


@pytest.mark.parametrize("other", ["PORT", "AVAPD_ADMIN_PORT"])
def test_the_health_port_is_a_port_of_its_own(other: str) -> None:
    """Two listeners on one port would take each other's clients."""
    (problem,) = problems({**GOOD, "AVAPD_HEALTH_PORT": "8080", other: "8080"})
    assert problem.startswith("AVAPD_HEALTH_PORT ")


def test_an_audit_sink_in_the_clear_is_warned_of() -> None:
    """Events and token could be read on their way; not on the host itself, and not over https."""
    for url, warned in (("http://u:p@sink.example/", 1), ("http://127.0.0.1:1/", 0), ("https://sink.example/", 0)):
        warnings = config.load({**GOOD, "AVAPD_AUDIT_SINK_URL": url}).warnings()
        assert sum("AVAPD_AUDIT_SINK_URL" in warning for warning in warnings) == warned
        assert "sink.example" not in "".join(warnings)


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", SECRETS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_is_read_from_a_file(tmp_path: Path, field: str, end: str) -> None:
    """By NAME_FILE or by the flag; the line's end does not belong to it."""
    variable = SECRETS[field]
    text = {"database_url": URL, "audit_sink_url": "https://user:secret@sink.example/"}.get(field, KEY)
    path = tmp_path / "secret"
    path.write_bytes((text + end).encode())
    environ = {name: value for name, value in GOOD.items() if name != variable}
    expected = (text,) if field == "api_keys" else text
    assert getattr(config.load({**environ, f"{variable}_FILE": str(path)}), field) == expected
    assert getattr(config.load(environ, {field: str(path)}), field) == expected
    assert getattr(config.load({**environ, f"{variable}_FILE": str(path), variable: ""}), field) == expected


@pytest.mark.parametrize("variable", [*SECRETS.values(), "AVAP_INTERNAL_KEY"])
def test_a_secret_may_not_be_set_twice(tmp_path: Path, variable: str) -> None:
    """Variable and file together: nobody could tell which one counts."""
    path = tmp_path / "secret"
    path.write_text(KEY, encoding="utf-8")
    (problem,) = problems({**GOOD, variable: URL, f"{variable}_FILE": str(path)})
    assert f"is set twice, as {variable} and as {variable}_FILE" in problem


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "is empty"), (b"\n", "is empty"), (b"\xff\xfe", "not UTF-8"), (None, "No such file")]
)
@pytest.mark.parametrize("variable", SECRETS.values())
def test_a_file_without_a_secret_stops_the_start(
    tmp_path: Path, variable: str, content: bytes | None, reason: str
) -> None:
    """Empty, unreadable or not text: the message names the variable, the path and the reason."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    environ = {name: value for name, value in GOOD.items() if name != variable}
    (problem,) = problems({**environ, f"{variable}_FILE": str(path)})
    assert problem.startswith(f"{variable} ")
    assert f"{variable}_FILE names {path}" in problem
    assert reason in problem


@pytest.mark.parametrize("path", ["/", "\0", "x" * 5000])
def test_a_path_that_cannot_be_opened_is_a_problem_and_no_crash(path: str) -> None:
    """A folder, a NUL, a name longer than the system takes."""
    (problem,) = problems({"DATABASE_URL": URL, "API_KEY_FILE": path, "AVAPD_ENV": "test"})
    assert problem.startswith("API_KEY ")


def test_only_secrets_have_files(tmp_path: Path) -> None:
    """PORT_FILE is nothing: no setting but a secret is read from a file."""
    path = tmp_path / "port"
    path.write_text("8080", encoding="utf-8")
    assert config.load({**GOOD, "PORT_FILE": str(path)}).port == 50051


# --- contradictions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"PORT": "9464"}, ("PORT", "AVAPD_ADMIN_PORT")),
        ({"AVAPD_ADMIN_PORT": "50051"}, ("PORT", "AVAPD_ADMIN_PORT")),
        ({"AVAPD_DRAIN_SECONDS": "0.5"}, ("AVAPD_PRE_DRAIN_SECONDS", "AVAPD_DRAIN_SECONDS")),
        ({"AVAPD_PRE_DRAIN_SECONDS": "31"}, ("AVAPD_PRE_DRAIN_SECONDS", "AVAPD_DRAIN_SECONDS")),
    ],
)
def test_settings_that_contradict_each_other_are_refused(environ: dict[str, str], names: tuple[str, str]) -> None:
    """Both are named."""
    (problem,) = problems({**GOOD, **environ})
    assert all(name in problem for name in names)


def test_a_misspelt_variable_is_noticed() -> None:
    """A near miss is named with what was probably meant."""
    found = config.misspelt({"AVAPD_REFRESH_SECOND": "1", "AVAPD_LOGLEVEL": "x", "AVAPD_WORKERS": "1", "PATH": "x"})
    assert found == [
        "AVAPD_LOGLEVEL is not a setting; did you mean AVAPD_LOG_LEVEL?",
        "AVAPD_REFRESH_SECOND is not a setting; did you mean AVAPD_REFRESH_SECONDS?",
    ]


def test_variables_of_kubernetes_are_left_alone() -> None:
    """A service called avapd adds these to every container beside it."""
    names = [
        "AVAPD_PORT",
        "AVAPD_SERVICE_HOST",
        "AVAPD_SERVICE_PORT",
        "AVAPD_PORT_50051_TCP",
        "AVAPD_SERVICE_PORT_GRPC",
    ]
    more = [f"AVAPD_PORT_50051_TCP_{part}" for part in ("ADDR", "PORT", "PROTO")]
    assert config.misspelt(dict.fromkeys([*names, *more], "tcp://10.0.0.1:50051")) == []


# --- secrets stay secret --------------------------------------------------------------------------------------------


def everything_said(environ: dict[str, str]) -> str:
    """All that an error of these settings tells, to anyone: text, arguments, traceback and its chain."""
    with contextlib.suppress(ConfigError):
        loaded = config.load(environ)
        return " ".join(loaded.warnings() + config.misspelt(environ))
    with pytest.raises(ConfigError) as caught:
        config.load(environ)
    error = caught.value
    return "".join([str(error), repr(error), *error.problems, *traceback.format_exception(error)])


@given(
    secret=secret_texts,
    form=st.sampled_from(
        [
            "{}", "mysql://u:{}@h/db", "postgresql://u:{}@h:x/db", "postgresql://u:{}@[::1/db", "postgresql://{}",
            "postgresql://u:{}@h:99999/db", "postgresql://u:{}@/db", "postgresql://u:pa/{}@h/db", "{}://h/db",
            "postgresql://u:{}@h\u2100/db", "postgresql://u:{}@[h]/db", "postgresql:{}", "postgresql:///{}",
        ]
    ),
)  # fmt: skip
@settings(deadline=None)
def test_a_malformed_connection_string_is_never_repeated(secret: str, form: str) -> None:
    """Whatever is wrong with DATABASE_URL, its text stays out of what is told about it."""
    assert MARK not in everything_said({**GOOD, "DATABASE_URL": form.format(secret)})


@given(secret=secret_texts, form=st.sampled_from(["{}", "{} {}", "{}ñ", ",{},", "{}\n"]))
@settings(deadline=None)
def test_a_malformed_key_is_never_repeated(secret: str, form: str) -> None:
    """Neither a key that is too short nor one that cannot be a header."""
    text = form.format(secret, secret)
    assert MARK not in everything_said({**GOOD, "API_KEY": text, "SIGNING_KEY": text, "PORT": "x"})


@given(secret=secret_texts)
@settings(deadline=None)
def test_secrets_set_twice_are_not_repeated(secret: str) -> None:
    """Only the names of the two variables are told."""
    environ = {"DATABASE_URL": secret, "API_KEY": secret, "SIGNING_KEY": secret}
    assert MARK not in everything_said({**environ, **{f"{name}_FILE": "/dev/null" for name in environ}})


def test_a_configuration_does_not_show_its_secrets() -> None:
    """`repr` is what a debugger, a failed assertion or a traceback with locals prints."""
    sink = {"AVAPD_AUDIT_SINK_URL": f"https://u:{MARK}@h/", "AVAPD_AUDIT_SINK_TOKEN": MARK}
    others = {"DATABASE_URL": f"postgresql://u:{MARK}@h/db", "API_KEY": MARK * 3, "SIGNING_KEY": MARK}
    loaded = config.load(GOOD | sink | others)
    assert MARK not in repr(loaded)
    assert MARK not in str(loaded)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("AVAPD_AUDIT_SINK_URL", "sink.example"),
        ("AVAPD_AUDIT_SINK_URL", f"ftp://u:{MARK}@h/"),
        ("AVAPD_AUDIT_SINK_URL", f"https://:{MARK}@"),
        ("AVAPD_AUDIT_SINK_URL", f"https://u:{MARK}@h:port/"),
        ("AVAPD_AUDIT_SINK_TOKEN", f"{MARK} {MARK}"),
        ("AVAPD_AUDIT_SINK_TOKEN", f"{MARK}ñ"),
    ],
)
def test_a_malformed_sink_is_refused_and_never_repeated(variable: str, text: str) -> None:
    """One problem, by the name of its variable."""
    (problem,) = problems({**GOOD, variable: text})
    assert problem.startswith(f"{variable} ")
    assert MARK not in problem
