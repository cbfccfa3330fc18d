"""Parsers of settings: a text in, a value out, or a ValueError that says what is wanted and never repeats the text."""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit


def integer(low: int, high: int) -> Callable[[str], int]:
    """A whole number in these bounds."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def seconds(low: float, high: float) -> Callable[[str], float]:
    """A number in these bounds."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) or not low <= float(text) <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return float(text)

    return parse


def choice(*names: str) -> Callable[[str], str]:
    """One of these words."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError("must be one of " + ", ".join(names))
        return text

    return parse


def database_url(text: str) -> str:
    """A connection string of PostgreSQL."""
    try:
        parts = urlsplit(text)
        # Several hosts are allowed; `port` raises ValueError, with the text in it, when it is not a number.
        hosts = parts.netloc.rpartition("@")[2].split(",")
        _ = [urlsplit(f"//{host}").port for host in hosts]
    except ValueError:
        raise ValueError("is not a URL (a password with special characters must be percent-encoded)") from None
    if parts.scheme not in {"postgres", "postgresql"}:
        raise ValueError("must begin with postgresql://")
    if not parts.hostname and "host=" not in parts.query:
        raise ValueError("names no host")
    return text


def ssl_mode(url: str) -> str | None:
    """The `sslmode` of a connection string, if it names one."""
    return dict(parse_qsl(urlsplit(url).query)).get("sslmode")


def verified(url: str) -> bool:
    """Whether the server of a connection string has to prove its name, or is reached by a Unix socket."""
    parts = urlsplit(url)
    socket = not parts.hostname and dict(parse_qsl(parts.query)).get("host", "").startswith(("/", "@"))
    return socket or ssl_mode(url) == "verify-full"


def loopback(host: str) -> bool:
    """Whether only this host can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def api_keys(text: str) -> tuple[str, ...]:
    """The keys in a text, separated by commas. Raises ValueError, without the text."""
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    if not keys:
        raise ValueError("holds no key")
    if not all(re.fullmatch(r"[!-+\--~]+", key) for key in keys):
        raise ValueError("must be printable ASCII without blanks: it travels as a request header")
    return keys


def name(text: str) -> str:
    """A name that PostgreSQL needs no quotes for."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]{0,62}", text):
        raise ValueError("must be a plain name of PostgreSQL")
    return text


def channel(text: str) -> str:
    """The name of a channel; empty for `off`."""
    return "" if text == "off" else name(text)


def grammar(text: str) -> int:
    """The minor version of Python 3 whose grammar is meant, 0 for `off`; no later one than runs here can be checked."""
    found = re.fullmatch(r"3\.([0-9]{1,2})", text)
    if text == "off":
        return 0
    if found is None or not 7 <= int(found[1]) <= sys.version_info.minor:
        raise ValueError(f"must be 3.7 to 3.{sys.version_info.minor} (the Python that runs avapd), or off")
    return int(found[1])


def switch(text: str) -> bool:
    """`on` or `off`."""
    return choice("on", "off")(text) == "on"


def consent(text: str) -> bool:
    """`1` for yes, `0` for no."""
    return choice("0", "1")(text) == "1"


def sink_url(text: str) -> str:
    """Where to POST to."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must begin with https:// or http:// and name a host")
    return text


def token(text: str) -> str:
    """What can stand in a header."""
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("must be printable ASCII without blanks: it travels as a request header")
    return text
