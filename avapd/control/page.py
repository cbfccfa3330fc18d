"""`/status` as a page for a browser: `page.html` with what is true now written into it.

The page asks for itself every two seconds and exchanges the parts that differ, so that there is one renderer, this one,
and nothing is missing without JavaScript. Names, reasons and errors are untrusted: `tag` escapes whatever it is given
that was not made by `tag`, and the policy lets run nothing but the one script and the one style of the file.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from importlib import resources
from typing import Any, Final

from avapd.control.status import SHOWN, Condition
from avapd.control.traffic import WINDOW_SECONDS
from avapd.control.wording import NONE, duration, latency, number, size
from avapd.log import printable

_TEMPLATE: Final = resources.files("avapd.control").joinpath("page.html").read_text(encoding="utf-8")


def _hash(element: str) -> str:
    """The source of a policy that allows exactly this element of the page."""
    text = _TEMPLATE.split(f"<{element}>")[1].split(f"</{element}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS: Final = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_hash('style')}; script-src {_hash('script')}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(element: str, *content: object, **attributes: object) -> Html:
    """An element. Everything that is no Html is escaped; `class_` is written `class`, `data_x` is `data-x`."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{element}{named}>{_joined(content)}</{element}>")


def _joined(parts: Iterable[object]) -> Html:
    return Html("".join(part if isinstance(part, Html) else escape(printable(str(part))) for part in parts))


def render(facts: dict[str, Any], conditions: Sequence[Condition], rates: Sequence[float], *, sources: bool) -> str:
    """The page. `rates` are the calls of the last seconds, oldest first; with `sources` its links lead to lines."""
    kind, word = _standing(facts, conditions)
    parts = {
        "title": _joined([f"avapd: {word}"]),
        "head": _head(facts, kind, word),
        "notices": _notices(facts, conditions),
        "tiles": _tiles(facts, rates),
        "workers": _joined(_worker(worker, facts["generation"]) for worker in facts["workers"]),
        "publications": _rows((_publication(one, sources) for one in facts["publications"]), 7, "nothing yet"),
        "quarantine": _quarantine(facts),
        "table": _table(facts),
        "switches": _switches(facts),
    }
    return re.sub(r"<!-- (\w+) -->", lambda found: parts[found[1]], _TEMPLATE)


def _standing(facts: dict[str, Any], conditions: Sequence[Condition]) -> tuple[str, str]:
    """The whole in one word, and its colour."""
    if facts["draining"]:
        return "warn", "draining"
    if not facts["ready"]:
        return "bad", "not ready"
    return ("good", "serving") if all(one.ok for one in conditions) else ("warn", "serving, with warnings")


def _head(facts: dict[str, Any], kind: str, word: str) -> Html:
    about = " · ".join(
        (facts["host"], facts["environment"], f"version {facts['version']}", f"engine {facts['engine']}",
         f"up {duration(facts['uptime_seconds'])}")
    )  # fmt: skip
    return _joined([tag("h1", "avapd"), tag("span", word, class_=f"pill {kind}"), tag("p", about, class_="about")])


def _notices(facts: dict[str, Any], conditions: Sequence[Condition]) -> Html:
    failed = {one.name for one in conditions if not one.ok}
    lines = [
        tag("li", tag("strong", one.name.replace("_", " ").capitalize()), ": ", one.reason, class_=_color(one))
        for one in conditions
        if not one.ok and not (one.name == "every_worker" and "workers" in failed)
    ]
    if facts["unchecked"]:
        text = f"{number(facts['unchecked'])} definitions are served before they are checked"
        lines.append(tag("li", tag("strong", "Validation"), ": ", text, class_="warn"))
    if facts["canary"]:
        lines.append(tag("li", tag("strong", "Canary"), ": one worker serves the next generation alone", class_="warn"))
    return _joined(lines)


def _color(condition: Condition) -> str:
    return "bad" if condition.required else "warn"


def _tiles(facts: dict[str, Any], rates: Sequence[float]) -> Html:
    private = [one["private_bytes"] for one in (facts["memory"], *(w["memory"] for w in facts["workers"])) if one]
    serving = sum(worker["state"] == "SERVING" for worker in facts["workers"])
    generation = str(facts["generation"] or NONE)
    age = facts["catalog_age_seconds"]
    return _joined(
        (
            _tile("Calls per second", number(facts["rate"]), f"{number(facts['calls'])} since the start", _line(rates)),
            _tile("95% answered within", latency(facts["p95_seconds"]), f"unary calls of the last {WINDOW_SECONDS} s"),
            _tile("Errors per second", number(facts["error_rate"]), f"{number(facts['errors'])} since the start"),
            _tile("Connections", number(facts["connections"]), f"on {serving} of {len(facts['workers'])} workers"),
            _tile("Definitions", number(facts["count"]), f"{size(facts['snapshot_bytes'])} shared by all workers"),
            _tile("Generation", generation, f"hash {(facts['version_hash'] or NONE)[:12]}"),
            _tile(
                "Table checked",
                NONE if age is None else f"{duration(age)} ago",
                f"content from {facts['source'] or NONE}",
            ),
            _tile("Own memory", size(sum(private)) if private else NONE, "of all processes together"),
        )
    )


def _tile(name: str, value: str, more: str, picture: Html = Html()) -> Html:  # noqa: B008  # immutable
    return tag("div", tag("dt", name), tag("dd", value, class_="value"), tag("dd", more, class_="more"), picture,
               class_="tile")  # fmt: skip


def _line(rates: Sequence[float]) -> Html:
    """A picture of the rates, from 0 to their highest."""
    if len(rates) < 2:
        return Html()
    most = max(rates) or 1.0
    points = " ".join(f"{place},{29 - 28 * rate / most:.1f}" for place, rate in enumerate(rates))
    label = f"calls per second in the last {duration(len(rates))}, at most {number(max(rates))}"
    return tag(
        "svg", tag("polyline", points=points), viewBox=f"0 0 {len(rates) - 1} 30", preserveAspectRatio="none",
        role="img", aria_label=label,
    )  # fmt: skip


def _worker(worker: dict[str, Any], generation: int) -> Html:
    serving = worker["state"] == "SERVING"
    behind = "warn" if worker["generation"] != generation else ""
    memory = worker["memory"]
    cells = (
        number(worker["rate"]), latency(worker["p95_seconds"]), number(worker["error_rate"]),
        number(worker["connections"]), size(memory["private_bytes"] if memory else None),
    )  # fmt: skip
    return tag(
        "tr", tag("th", worker["worker"], scope="row"),
        tag("td", worker["state"].lower(), class_="good" if serving else "bad"),
        *(tag("td", cell, class_="n") for cell in cells),
        tag("td", worker["generation"] or NONE, class_=f"n {behind}"), tag("td", worker["restarts"], class_="n"),
        tag("td", duration(worker["uptime_seconds"])), tag("td", worker["pid"] or NONE, class_="n"),
    )  # fmt: skip


def _publication(one: dict[str, Any], sources: bool) -> Html:
    words = "what changed" if sources else "names"
    link: object = NONE
    if one["diff"]:
        link = tag("a", words, href=f"changes?generation={one['generation']}", data_generation=one["generation"],
                   aria_label=f"{words}, generation {one['generation']}")  # fmt: skip
    change = f"+{number(one['added'])} ~{number(one['changed'])} −{number(one['removed'])}"  # noqa: RUF001
    return tag(
        "tr", tag("th", one["generation"], scope="row"), tag("td", _ago(one["at"])), tag("td", change),
        tag("td", link), tag("td", number(one["count"]), class_="n"), tag("td", one["origin"]),
        tag("td", tag("code", one["version_hash"][:12])),
    )  # fmt: skip


def _quarantine(facts: dict[str, Any]) -> Html:
    rows = [
        tag(
            "tr", tag("th", one["name"], scope="row", class_="wide"), tag("td", one["reason"]),
            tag("td", one["error"], class_="wide"), tag("td", _ago(one["since"])),
            tag("td", "its last good version" if one["served"] else "nothing", class_="" if one["served"] else "bad"),
        )
        for one in facts["quarantine"]
    ]  # fmt: skip
    more = sum(facts["quarantined"].values()) - len(rows)
    if more > 0:
        text = f"and {number(more)} more than the {SHOWN} shown here: see `avapd quarantine list`"
        rows.append(tag("tr", tag("td", text, colspan=5, class_="empty")))
    return _rows(rows, 5, "nothing: every definition passes validation")


def _rows(rows: Iterable[Html], columns: int, otherwise: str) -> Html:
    return _joined(rows) or tag("tr", tag("td", otherwise, colspan=columns, class_="empty"))


def _table(facts: dict[str, Any]) -> Html:
    database, polls = facts["database"], facts["polls"]
    counted = ", ".join(f"{number(count)} {result}" for result, count in polls.items() if result != "last_seconds")
    rejected = ", ".join(
        f"{number(count)} {reason.replace('_', ' ')}" for reason, count in facts["rejected"].items() if count
    )
    return _facts(
        ("Database", "answers" if database["up"] else tag("span", "does not answer", class_="bad")),
        ("Last error", database["last_error"] or "none"),
        ("Last attempt", _ago(facts["last_attempt"])),
        ("Last good check", _ago(facts["last_check"])),
        ("Last change", _ago(facts["last_change"])),
        ("Last activation", _ago(facts["last_activation"])),
        ("Notifications", "listening" if facts["listening"] else "not listening"),
        ("Polls", f"{counted}; the last took {latency(polls['last_seconds'])}"),
        ("Rows not served", rejected or "none"),
    )  # fmt: skip


def _certificates(facts: dict[str, Any]) -> Html:
    ends = sorted((at, name) for name, at in facts["certificates"].items())
    return _joined([", ".join(f"{name.replace('_', ' ')} {at[:10]}" for at, name in ends) or "clear text, without TLS"])


def _switches(facts: dict[str, Any]) -> Html:
    frozen: object = "no"
    if facts["frozen"]:
        since = duration(time.time() - facts["frozen_at"]) if facts["frozen_at"] else NONE
        frozen = tag("span", f"{facts['frozen']}, {since} ago", class_="warn")
    denied = facts["denied"][:SHOWN]
    names = ", ".join(denied) + (f" and {len(facts['denied']) - SHOWN} more" if len(facts["denied"]) > SHOWN else "")
    return _facts(
        ("Frozen", frozen), ("Denied", names or "nothing"), ("Approved", ", ".join(facts["approved"]) or "nothing"),
        ("Candidate refused", facts["refused"] or "none"), ("Certificates expire", _certificates(facts)),
    )  # fmt: skip


def _facts(*pairs: tuple[str, object]) -> Html:
    return _joined(tag(element, part) for pair in pairs for element, part in zip(("dt", "dd"), pair, strict=True))


def _ago(moment: str | None) -> Html:
    if moment is None:
        return tag("span", "never")
    age = time.time() - datetime.fromisoformat(moment).timestamp()
    return tag("time", f"{duration(age)} ago", datetime=moment, title=moment)
