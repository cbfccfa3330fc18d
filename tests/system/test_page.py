"""The status page, as a browser shows it: safe with hostile names, live, readable, whole without JavaScript."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from support.browser import Browser
from support.database import Database
from support.server import Server
from support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)  # a browser's first start is slow on a busy machine

HOSTILE = [
    "<script>window.pwned = 1</script>",
    '"><img src=x onerror="window.pwned = 1">',
    "</td></table><h1 id=pwned>owned</h1>",
    "&lt;b&gt;; <!-- head --> \\1 {{x}} $x",
    "clear\x1b[2J\nscreen \u202etxt.exe",
]
DENIED = "<b id=pwned>denied</b>"
# Every text with less contrast than WCAG 2.1 AA asks for (4.5, or 3 for large text), of all that is shown.
CONTRASTS = """
(() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const linear = (part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = parse(color).map((part) => linear(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if ((parse(color)[3] ?? 1) === 1) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  let looked = 0;
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    if (!text || !element.checkVisibility()) continue;
    const [one, other] = [light(getComputedStyle(element).color), light(behind(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    looked += 1;
    if (contrast < 4.5) found.push([text.slice(0, 40), contrast]);
  }
  return {looked, found};
})()
"""


def in_table(name: str) -> str:
    """The names of HOSTILE as they are shown: control characters escaped, all else as it is."""
    return name.replace("\x1b", "\\u001b").replace("\n", "\\u000a").replace("\u202e", "\\u202e")


@pytest.fixture(scope="module")
def table(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url)
    made.insert_many(40, 200)
    yield made
    made.drop()


@pytest.fixture(scope="module")
def server(table: Database) -> Iterator[Server]:
    """With hostile names in quarantine and denied, a refused candidate, and frozen for a hostile reason."""
    with Server(table.reader_url, env={"AVAPD_WORKERS": "3", "AVAPD_SILENCE_SECONDS": "60"}) as made:
        made.wait_serving()
        table.insert([(name, "{}", "function", "x = 1") for name in HOSTILE])
        wait_until(lambda: len(made.status()["quarantine"]) == len(HOSTILE))
        table.insert([(f"{HOSTILE[0]} good", "[]", "function", "x = '<b>'\n")])
        made.wait_served(lambda status: status["count"] == 41)
        assert made.order("deny", DENIED).returncode == 0
        table.execute("DELETE FROM obex_dapl_functions WHERE name BETWEEN 'command_000005' AND 'command_000030'")
        wait_until(lambda: made.status()["refused"])
        assert made.order("freeze", "--reason", HOSTILE[0]).returncode == 0
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


@pytest.fixture
def page(browser: Browser, server: Server) -> Browser:
    """The browser with the page in it."""
    browser.open(f"http://127.0.0.1:{server.admin_port}/status")
    return browser


def text_of(page: Browser, part: str) -> str:
    found: str = page.script(f"document.querySelector({json.dumps(part)}).innerText")
    return found


def test_hostile_names_are_text(page: Browser) -> None:
    """They stand there as they are, nothing of them became an element or ran, and no policy had to stop it."""
    shown = text_of(page, "#quarantine")
    for name in HOSTILE:
        assert in_table(name) in shown
    assert HOSTILE[0] in text_of(page, "#notices")
    assert DENIED in text_of(page, "#switches")
    assert page.script("window.pwned === undefined && document.getElementById('pwned') === null")
    assert page.script("document.images.length") == 0
    assert page.script("document.scripts.length") == 1
    assert not page.console


def test_what_the_server_does_is_on_the_page(page: Browser, server: Server) -> None:
    """Workers, generations, hash and switches are those of `/status`."""
    status = server.status()
    rows = page.script("[...document.querySelectorAll('#workers tr')].map((row) => row.innerText.split('\\t'))")
    assert [[row[0], row[1], row[7], row[10]] for row in rows] == [
        [str(one["worker"]), "serving", str(one["generation"]), str(one["pid"])] for one in status["workers"]
    ]
    publications = page.script("[...document.querySelectorAll('#publications th')].map((cell) => cell.innerText)")
    assert publications == [str(one["generation"]) for one in status["publications"]]
    assert status["version_hash"][:12] in text_of(page, "#tiles")
    assert status["refused"] in text_of(page, "#switches")
    assert text_of(page, ".pill") == "serving, with warnings"
    assert page.script("document.title") == "avapd: serving, with warnings"


def test_the_policy_lets_nothing_else_run(page: Browser) -> None:
    """A script or a style that came into the page all the same does nothing, nor can anything be sent elsewhere."""
    page.script("""
        const made = document.createElement("script"); made.textContent = "window.pwned = 1";
        document.body.append(made);
        const frame = document.createElement("div"); frame.setAttribute("onclick", "window.pwned = 1");
        document.body.append(frame); frame.click();
    """)
    assert page.script("window.pwned") is None
    sent = page.script("fetch('http://127.0.0.1:1/').then(() => 'sent', (error) => error.name)")
    assert sent == "TypeError"
    wait_until(lambda: sum("Content Security Policy" in line for line in _heard(page)) >= 3)


def _heard(page: Browser) -> list[str]:
    page.script("0")  # what was said before the answer to this is heard by then
    return page.console


def test_what_changed_is_shown_on_demand(page: Browser, server: Server) -> None:
    """A click loads names and lines of one publication, as text; the server is asked for nothing before."""
    newest = server.status()["publications"][0]["generation"]
    assert page.script("document.getElementById('changes').hidden")
    page.script("document.querySelector('#publications a').click()")
    wait_until(lambda: not page.script("document.getElementById('changes').hidden"))
    shown = text_of(page, "#changes")
    assert f"What generation {newest} changed" in shown
    assert f"+ {HOSTILE[0]} good" in shown
    assert "+x = '<b>'" in shown
    assert page.script("document.querySelector('#changes pre b, #changes pre script')") is None
    page.script("document.querySelector('#changes button').click()")
    assert page.script("document.getElementById('changes').hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(page: Browser, scheme: str) -> None:
    """Contrast of at least 4.5 to 1, in the light and in the dark."""
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.script("document.querySelector('#publications a').click()")
    wait_until(lambda: not page.script("document.getElementById('changes').hidden"))
    seen = page.script(CONTRASTS)
    assert seen["looked"] > 100
    assert seen["found"] == []


def test_a_phone_shows_it_without_moving_sideways(page: Browser) -> None:
    """At 400 pixels the page is as wide as the screen; only tables move within their frame."""
    metrics = {"height": 800, "deviceScaleFactor": 2, "mobile": True}
    page.call("Emulation.setDeviceMetricsOverride", width=400, **metrics)
    try:
        wait_until(lambda: page.script("innerWidth") == 400)
        assert page.script("document.documentElement.scrollWidth") == 400
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


def test_those_who_do_not_see_it_find_their_way(page: Browser) -> None:
    """One first heading, a name for every table and picture, and heads for its columns and rows."""
    assert page.script("document.documentElement.lang") == "en"
    assert page.script("document.querySelectorAll('h1').length") == 1
    tables = page.script(
        """[...document.querySelectorAll("table")].map((table) => [
            document.getElementById(table.parentElement.getAttribute("aria-labelledby"))?.innerText,
            [...table.querySelectorAll("thead th")].every((cell) => cell.scope === "col"),
            [...table.querySelectorAll("tbody tr")]
              .every((row) => row.cells.length === 1 || row.cells[0].scope === "row"),
        ])"""
    )
    assert tables == [[name, True, True] for name in ("Workers", "Last publications", "Quarantine")]
    wait_until(lambda: page.script("document.querySelector('svg')?.getAttribute('aria-label')?.length > 20"))


def test_it_is_whole_without_scripts(page: Browser, server: Server) -> None:
    """The server renders the first state, its links lead to text, and it renews itself."""
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(f"http://127.0.0.1:{server.admin_port}/status?plain")
        assert in_table(HOSTILE[0]) in text_of(page, "#quarantine")
        assert text_of(page, "#workers").count("serving") == 3
        assert page.script("document.querySelector('meta[http-equiv=refresh]').content") == "5"
        link = page.script("document.querySelector('#publications a').href")
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert server.http(link.partition(str(server.admin_port))[2])[1].startswith(f"+ {HOSTILE[0]} good\n")


def test_it_lives_and_tells_when_the_server_does_not(browser: Browser, serve: Any, sample: Database) -> None:
    """A publication appears without loading the page anew; silence is told, and its end."""
    server: Server = serve(sample.reader_url, env={"AVAPD_WORKERS": "1"}).wait_serving()
    browser.open(f"http://127.0.0.1:{server.admin_port}/status")
    browser.script("window.same = true")
    sample.insert([("another", "[]", "function", "x = 2\n")])
    wait_until(lambda: browser.script("document.querySelector('#publications th').innerText") == "2", 20)
    assert browser.script("window.same")
    server.process.kill()
    wait_until(lambda: not browser.script("document.getElementById('lost').hidden"), 30)
    assert re.match("No answer since .*: what is shown is of then", text_of(browser, "#lost"))
    serve(sample.reader_url, env={"AVAPD_WORKERS": "1", "AVAPD_ADMIN_PORT": str(server.admin_port)})
    wait_until(lambda: browser.script("document.getElementById('lost').hidden"), 30)
    wait_until(lambda: browser.script("document.title") == "avapd: serving", 30)
