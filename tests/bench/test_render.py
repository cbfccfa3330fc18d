"""The page: made from the result files alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.frame import RESULTS, Plot, Result
from bench.pages import render

Make = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the repository's results, with a page beside it as in the repository."""
    copied = tmp_path / "results"
    shutil.copytree(RESULTS, copied)
    (tmp_path / "README.md").write_text(render.render(copied, tmp_path / "README.md"), encoding="utf-8")
    return copied


def faults(folder: Path) -> list[str]:
    return render.faults(folder, folder.parent / "README.md")


def test_the_committed_page_is_not_stale() -> None:
    """bench/README.md and its pictures are what `python -m bench render` makes of the committed results."""
    assert render.faults(RESULTS) == []


def test_the_page_does_not_depend_on_where_the_repository_lies(folder: Path) -> None:
    """A copy elsewhere is rendered to the same text."""
    assert (folder.parent / "README.md").read_text(encoding="utf-8") == render.render(RESULTS)


def test_a_changed_number_makes_the_page_stale(folder: Path) -> None:
    """One round of one result with another number is enough."""
    path = folder / "engine.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["rounds"][0]["figures"]["per_second"] *= 1.5
    before = faults(folder)
    path.write_text(json.dumps(fields), encoding="utf-8")
    assert "bench/README.md is stale" not in before
    assert "bench/README.md is stale" in faults(folder)


def test_a_missing_page_is_stale(tmp_path: Path) -> None:
    """No page is no page that is up to date."""
    assert render.faults(RESULTS, tmp_path / "README.md")[0] == "bench/README.md is stale"


def test_files_written_before_there_were_plots_are_rendered(make: Make, tmp_path: Path) -> None:
    """A file without the fields `plots`, `commands` and `over_case` is rendered as one in which they are empty."""
    path = make({"10x10": {"wire": {"per_second": [1.0]}}}).save(tmp_path)
    whole = render.render(tmp_path)
    fields = json.loads(path.read_text(encoding="utf-8"))
    for name in ("plots", "commands", "skipped"):
        del fields[name]
    path.write_text(json.dumps(fields), encoding="utf-8")
    assert render.render(tmp_path) == whole


def test_a_folder_without_results_is_rendered(tmp_path: Path) -> None:
    """Nothing measured is a page without sections."""
    assert "## " not in render.render(tmp_path)


def test_every_line_of_the_contents_leads_to_a_heading() -> None:
    """Each link at the head of the page is the anchor of a heading, in their order."""
    text = render.render(RESULTS)
    links = re.findall(r"^- \[(.+)\]\(#(.+)\)$", text, re.MULTILINE)
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert [head for head, _ in links] == heads
    assert [anchor for _, anchor in links] == [render.anchor(head) for head in heads]


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("engine: what one core answers, on both", "engine-what-one-core-answers-on-both"),
        ("memory: the master's peak", "memory-the-masters-peak"),
        ("a_b - c", "a_b---c"),
    ],
)
def test_anchors_are_those_of_github(heading: str, expected: str) -> None:
    """Small letters, no punctuation but hyphens and underscores, a hyphen for each blank."""
    assert render.anchor(heading) == expected


def test_pictures_and_command_lines_stand_in_the_section(make: Make, tmp_path: Path) -> None:
    """A plot is linked relative to the page, with an alternative text; command lines are folded away."""
    plot = Plot(name="calls", title="Calls", kind="bars", figures=("per_second",), axis="calls [1/s]")
    result = make(
        {"10x10": {"wire": {"per_second": [1.0]}}}, plots=[plot], commands={"wire, 10x10": "h2load -c 10 http://[::1]"}
    )
    result.save(tmp_path / "results")
    text = render.render(tmp_path / "results", tmp_path / "README.md")
    assert r"![Calls (calls \[1/s\]): wire; 10x10](results/plots/engine-calls.svg)" in text
    assert "```sh\n# wire, 10x10\nh2load -c 10 http://[::1]\n```" in text


def test_in_short_says_only_what_was_measured(make: Make, tmp_path: Path) -> None:
    """A sentence stands there when its result does, with its numbers."""
    make({"10x10": {"wire": {"per_cpu_second": [50.0]}, "peer": {"per_cpu_second": [10.0]}}}).save(tmp_path)
    brief = render.render(tmp_path).partition("## In short\n")[2].partition("\n## ")[0]
    assert "*wire* answers 5.00 times as many calls as *peer*" in brief
    assert brief.count("\n- ") == 1
    make({"35,000/s": {"wire": {"p95_ms": [0.5], "lost": [3.0]}}}, bench="latency", quick=True).save(tmp_path)
    brief = render.render(tmp_path).partition("## In short\n")[2].partition("\n## ")[0]
    assert "is 0.5 ms, 3 calls without an answer (quick run) (`latency`)" in brief
