"""`python -m bench.compare`: the rule, what is comparable, exit codes."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import compare
from bench.frame import RESULTS, Bar, Result
from bench.pages.stats import Figure

Make = Callable[..., Result]
SPREADS = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=12)


def against_peer(make: Make, ours: list[float], **fields: object) -> Result:
    """A result in which the peer answers 100 calls a second in every round."""
    peer = [100.0] * len(ours)
    return make({"10x10": {"wire": {"per_second": ours}, "peer": {"per_second": peer}}}, **fields)


def verdicts(old: Result, new: Result) -> list[str]:
    return [one.verdict for one in compare.compare(old, new, 0.1)]


def figure(values: list[float]) -> Figure:
    return Figure(sorted(values)[len(values) // 2], min(values), max(values), len(values))


def test_a_fall_of_15_percent_is_found(make: Make) -> None:
    """Five rounds 15 % slower, with noise of 2 % on both sides, are worse, and the other way round better."""
    old = against_peer(make, [1000, 980, 1020, 990, 1010])
    new = against_peer(make, [850, 833, 867, 842, 858])
    assert verdicts(old, new) == [compare.WORSE]
    assert verdicts(new, old) == [compare.BETTER]


def test_noise_is_not_cried_at(make: Make) -> None:
    """A median that fell by 15 % while the rounds overlap is worse within the noise, which does not fail."""
    old = against_peer(make, [1000, 800, 1200, 1010, 990])
    new = against_peer(make, [850, 1100, 700, 840, 860])
    assert verdicts(old, new) == [compare.NOISE]


def test_equal_results_look_worse_less_than_once_in_100() -> None:
    """Of 2,000 pairs of five rounds from one distribution with 20 % of noise, less than 1 % are found worse."""
    draw = random.Random(1)
    cries = 0
    for _ in range(2_000):
        old, new = ([draw.gauss(100, 20) for _ in range(5)] for _ in range(2))
        cries += compare.verdict(figure(old), figure(new), 0.1) == compare.WORSE
    assert cries < 20


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([100, 102], [88, 91], compare.NOISE),  # lies apart, but two rounds do so once in six
        ([100, 102], [80, 81], compare.WORSE),  # apart by more than the limit
        ([100], [85], compare.NOISE),
        ([100], [75], compare.WORSE),  # a single round: by more than twice the limit
        ([100, 101, 102], [88, 88, 89], compare.WORSE),  # apart once in twenty: that is enough
        ([100, 101, 102], [92, 92, 92], compare.SAME),
    ],
)
def test_few_rounds_need_a_wider_gap(old: list[float], new: list[float], expected: str) -> None:
    """The fewer rounds there are, the further apart they must lie before something is called worse."""
    assert compare.verdict(figure(old), figure(new), 0.1) == expected


@given(SPREADS, st.sampled_from(["at least", "at most"]), st.floats(0.01, 0.4))
def test_nothing_is_worse_than_itself(values: list[float], sense: str, worse: float) -> None:
    """compare(old, old) is `same`, whatever the rounds were."""
    assert compare.verdict(figure(values), figure(values), worse, sense) == compare.SAME


@given(SPREADS, SPREADS, st.sampled_from(["at least", "at most"]))
def test_what_is_worse_is_better_the_other_way_round(old: list[float], new: list[float], sense: str) -> None:
    """Worse and better are the same rule with the sides changed."""
    forth = compare.verdict(figure(old), figure(new), 0.1, sense)
    back = compare.verdict(figure(new), figure(old), 0.1, sense)
    assert (forth == compare.WORSE) == (back == compare.BETTER)


def test_a_rise_is_worse_where_less_is_better(make: Make) -> None:
    """A ratio of latencies that rises is worse when its bar says `at most`."""
    bar = Bar(says="", case="swaps", figure="p95_ms", contestant="wire", over_case="quiet", limit=2)
    results = [
        make({"swaps": {"wire": {"p95_ms": [much, much]}}, "quiet": {"wire": {"p95_ms": [1, 1]}}}, bars=[bar])
        for much in (1.0, 1.5)
    ]
    assert verdicts(*results) == [compare.WORSE]
    assert verdicts(*reversed(results)) == [compare.BETTER]


def test_only_ratios_are_compared(make: Make) -> None:
    """A machine that is half as fast for all is not worse, and a bar without `over` is not looked at."""
    bar = Bar(says="", case="10x10", figure="per_second", contestant="wire", sense="at least", limit=1)
    old = make({"10x10": {"wire": {"per_second": [100]}, "peer": {"per_second": [10]}}}, bars=[bar])
    new = make({"10x10": {"wire": {"per_second": [50]}, "peer": {"per_second": [5]}}}, bars=[bar])
    assert verdicts(old, new) == [compare.SAME]


def test_each_ratio_is_compared_once(make: Make) -> None:
    """A bar that is also a pair of contestants is judged once."""
    bar = Bar(says="", case="10x10", figure="per_second", contestant="wire", over="peer", sense="at least")
    assert len(compare.compare(against_peer(make, [1], bars=[bar]), against_peer(make, [1], bars=[bar]), 0.1)) == 1


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_result_of_the_repository_equals_itself(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Comparing a real file with itself ends with 0."""
    assert compare.main([str(path), str(path)]) == 0
    assert "worse" not in capsys.readouterr().out


def test_other_parameters_are_named_and_not_compared(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another client, another size, a quick run: exit code 2, and the names are told; --anyway compares."""
    old = against_peer(make, [100], parameters={"client": "h2load", "seconds": 3})
    new = against_peer(make, [100], parameters={"client": "replay", "size": 1}, quick=True)
    paths = [str(one.save(tmp_path / name)) for one, name in ((old, "old"), (new, "new"))]
    assert compare.main(paths) == 2
    said = capsys.readouterr().out
    assert all(f"differs: {name}:" in said for name in ("client", "seconds", "size", "quick"))
    assert compare.main([*paths, "--anyway"]) == 0


def test_other_cores_are_comparable(make: Make) -> None:
    """Which CPUs were used does not matter, whether server and clients shared one does."""
    one, other, shared = (
        against_peer(make, [1], parameters={"cores": {"server": server, "client": client}})
        for server, client in ((0, 1), (2, 3), (1, 1))
    )
    assert not compare.differences(one, other)
    assert compare.differences(one, shared)


def test_folders_are_compared_file_by_file(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files of the same name are compared, others named; one that is worse makes the exit code 1."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, ours in ((old, 100.0), (new, 70.0)):
        against_peer(make, [ours] * 3).save(folder)
    dataclasses.replace(against_peer(make, [1]), bench="idle").save(old)
    assert compare.main([str(old), str(new)]) == 1
    assert "idle.json is only in" in capsys.readouterr().out
    assert compare.main([str(old), str(new), "--worse", "40"]) == 0


def test_nothing_in_common_is_no_success(tmp_path: Path) -> None:
    """Two empty folders end with 2."""
    assert compare.main([str(tmp_path), str(tmp_path)]) == 2
