"""How numbers are written for people, on the page and in `avapd top`."""

from __future__ import annotations

from typing import Final

NONE: Final = "-"
_SPANS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def number(value: float | None) -> str:
    """A whole number with its thousands apart; one decimal below ten."""
    if value is None:
        return NONE
    return f"{value:,.1f}" if 0 < value < 10 and value != int(value) else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """The two largest units of a span: `3 h 12 min`."""
    if seconds is None:
        return NONE
    rest = max(0, int(seconds))
    for place, (size, unit) in enumerate(_SPANS):
        if rest >= size:
            more = rest % size // _SPANS[place + 1][0] if place + 1 < len(_SPANS) else 0
            return f"{rest // size} {unit}" + (f" {more} {_SPANS[place + 1][1]}" if more else "")
    return "0 s"


def latency(seconds: float | None) -> str:
    """A time that a call takes, with two or three digits that count."""
    if seconds is None:
        return NONE
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.2g} s"


def size(octets: float | None) -> str:
    """Bytes in powers of 1024."""
    if octets is None:
        return NONE
    for unit in ("B", "KiB", "MiB"):
        if octets < 1024:
            return f"{octets:.0f} {unit}" if unit == "B" or octets >= 100 else f"{octets:.3g} {unit}"
        octets /= 1024
    return f"{octets:.3g} GiB"
