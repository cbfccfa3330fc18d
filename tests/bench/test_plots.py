"""The pictures: what they show, when they are stale, that they are drawn."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.frame import RESULTS, Column, Plot, Result
from bench.pages import plots, render

Make = Callable[..., Result]
BARS = Plot(name="calls", title="Calls", kind="bars", figures=("per_second", "mean_ms"), axis="at saturation", log=True)
LINES = Plot(name="over", title="Over cases", kind="lines", figures=("per_second",), axis="calls [1/s]")


@pytest.fixture
def result(make: Make) -> Result:
    """Two cases, two contestants, two figures; the peer lacks one case."""
    return make(
        {
            "10x10": {
                "wire": {"per_second": [90.0, 100.0, 130.0], "mean_ms": [1.0, 1.1, 0.9]},
                "peer": {"per_second": [9.0, 10.0, 13.0], "mean_ms": [10.0, 11.0, 9.0]},
            },
            "1x1": {"wire": {"per_second": [5.0, 6.0, 7.0], "mean_ms": [0.2, 0.2, 0.2]}},
        },
        columns=[Column(figure="per_second", head="calls", unit="1/s"), Column(figure="mean_ms", head="mean")],
        plots=[BARS, LINES],
    )


@pytest.fixture
def needs_matplotlib() -> None:
    """Skips where pictures cannot be drawn."""
    pytest.importorskip("matplotlib", reason=f"pictures are drawn by matplotlib: {plots.INSTALL}")


def shown(result: Result, plot: Plot) -> plots.Picture:
    found = plots.picture(result, plot)
    assert found is not None
    return found


def hide_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed."""
    real = builtins.__import__

    def hidden(name: str, *rest: object, **options: object) -> object:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "bench.pages.drawing", raising=False)
    monkeypatch.delattr("bench.pages.drawing", raising=False)
    monkeypatch.setattr(builtins, "__import__", hidden)


def changed(result: Result, factor: float) -> Result:
    """The same with one number of one round changed."""
    one = result.rounds[0]
    figures = {**one.figures, "per_second": one.figures["per_second"] * factor}
    rounds = [type(one)(case=one.case, contestant=one.contestant, number=one.number, figures=figures)]
    return type(result)(
        **{name: getattr(result, name) for name in result.__dataclass_fields__ if name != "rounds"},
        rounds=[*rounds, *result.rounds[1:]],
    )


def test_a_picture_shows_medians_with_the_smallest_and_largest_round(result: Result) -> None:
    """The figures of a picture are those of the table above it; what was not measured has no point."""
    plain = plots.as_plain(shown(result, BARS))
    assert plain["per_second"] == {
        "wire": {"10x10": (100.0, 90.0, 130.0), "1x1": (6.0, 5.0, 7.0)},
        "peer": {"10x10": (10.0, 9.0, 13.0)},
    }


def test_a_plot_of_what_was_not_measured_is_no_picture(make: Make) -> None:
    """A plot whose figure no round has is left out of the page."""
    assert plots.picture(make({"10x10": {"wire": {"other": [1.0]}}}), LINES) is None


def test_the_digest_follows_every_number(result: Result) -> None:
    """The same figures have the same digest, one changed round has another."""
    assert shown(result, BARS).digest == shown(changed(result, 1.0), BARS).digest
    assert shown(result, BARS).digest != shown(changed(result, 0.99), BARS).digest


def test_stale_missing_and_foreign_pictures_are_named(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`faults` reads digests and draws nothing: it works without matplotlib."""
    hide_matplotlib(monkeypatch)
    place = tmp_path / plots.FOLDER
    place.mkdir()
    good = f"<dc:identifier>sha256:{shown(result, BARS).digest}</dc:identifier>"
    (place / "engine-calls.svg").write_text(good, encoding="utf-8")
    (place / "engine-old.svg").write_text("<svg/>", encoding="utf-8")
    assert plots.faults(tmp_path, [result]) == ["engine-over.svg is missing", "engine-old.svg belongs to no result"]
    assert "engine-calls.svg is stale" in plots.faults(tmp_path, [changed(result, 2.0)])


def test_without_matplotlib_the_page_is_written_and_the_way_out_told(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`render` writes the page first, then says that no picture was drawn, and how to install what draws."""
    hide_matplotlib(monkeypatch)
    folder = tmp_path / "results"
    result.save(folder)
    with pytest.raises(plots.NoMatplotlibError, match=r"pip install '\.\[bench\]'"):
        render.write(folder, tmp_path / "README.md")
    assert "engine-calls.svg" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("needs_matplotlib")
@pytest.mark.parametrize("plot", [BARS, LINES], ids=["bars", "lines"])
def test_a_picture_is_the_same_octets_again(result: Result, plot: Plot) -> None:
    """Drawn twice it is the same, is well-formed, and holds its digest and title."""
    text = plots.svg(shown(result, plot))
    assert text == plots.svg(shown(result, plot))
    root = ET.fromstring(text)
    assert root.findtext("{http://www.w3.org/2000/svg}title") == plot.title
    assert f"sha256:{shown(result, plot).digest}" in text
    assert "Matplotlib v" not in text


@pytest.mark.usefixtures("needs_matplotlib")
def test_every_value_is_printed_at_its_bar(result: Result) -> None:
    """The medians stand in the picture as text."""
    texts = [element.text for element in ET.fromstring(plots.svg(shown(result, BARS))).iter() if element.text]
    assert {"100", "10", "6", "wire", "peer", "10x10", "1x1"} <= {text.strip() for text in texts}


@pytest.mark.usefixtures("needs_matplotlib")
def test_only_what_is_stale_is_drawn(result: Result, tmp_path: Path) -> None:
    """A picture that shows what it should is left as it is; one that belongs to nothing is removed."""
    assert plots.draw(tmp_path, [result]) == ["engine-calls.svg", "engine-over.svg"]
    (tmp_path / plots.FOLDER / "engine-gone.svg").write_text("<svg/>", encoding="utf-8")
    assert plots.draw(tmp_path, [result]) == []
    assert plots.faults(tmp_path, [result]) == []
    assert plots.draw(tmp_path, [changed(result, 2.0)]) == ["engine-calls.svg", "engine-over.svg"]


@pytest.mark.usefixtures("needs_matplotlib")
@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("kind", ["bars", "lines"])
@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [1e-9, 1e9], [5.0]])
def test_odd_numbers_are_drawn(make: Make, kind: str, values: Sequence[float], log: bool) -> None:
    """Zeros, a single round, and eighteen magnitudes at once make a picture without a warning."""
    plot = Plot(name="x", title="x", kind=kind, figures=("x",), axis="x", log=log)
    assert plots.svg(shown(make({"a": {"wire": {"x": values}}}), plot))


@pytest.mark.usefixtures("needs_matplotlib")
def test_a_contestant_has_one_colour() -> None:
    """Ours, and all that are known, are told apart; an unknown one has the same colour each time."""
    from bench.pages import drawing  # noqa: PLC0415  # needs matplotlib

    assert len({drawing.colour(name) for name in ("wire", "grpcio", "avapd", "grpc_go", "tonic", "nghttpd")}) == 6
    assert drawing.colour("nobody knows") == drawing.colour("nobody knows")
    assert drawing.colour("avapd, blocks never repeat") != drawing.colour("avapd")


@pytest.mark.usefixtures("needs_matplotlib")
@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_plots_of_the_repository_are_drawn(path: Path) -> None:
    """Every plot of a real result makes a picture."""
    result = Result.load(path)
    for _, picture in plots.pictures([result]):
        assert plots.svg(picture).startswith("<?xml")
