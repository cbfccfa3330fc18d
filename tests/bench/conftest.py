"""The package `bench` of the checkout, which is in no wheel: loaded from its folder, with sys.path as it is."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "bench"


def _load() -> None:
    spec = importlib.util.spec_from_file_location(
        "bench", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = package
    spec.loader.exec_module(package)


_load()

from bench.frame import Bar, Column, Plot, Result, Round  # noqa: E402  # there is no such package before _load


@pytest.fixture
def make() -> Callable[..., Result]:
    """Makes results: `figures` are case → contestant → figure → values of the rounds."""

    def made(figures: dict[str, dict[str, dict[str, list[float]]]], **fields: object) -> Result:
        rounds = [
            Round(case=case, contestant=contestant, number=number, figures={name: values[number - 1]})
            for case, contestants in figures.items()
            for contestant, named in contestants.items()
            for name, values in named.items()
            for number in range(1, len(values) + 1)
        ]
        given: dict[str, object] = {
            "bench": "engine", "title": "a bench", "method": "How.", "date": "2026-01-01T00:00:00+00:00",
            "quick": False, "command": "python -m bench engine", "parameters": {}, "machine": {}, "versions": {},
            "columns": list[Column](), "bars": list[Bar](), "plots": list[Plot](), "rounds": rounds, **fields,
        }  # fmt: skip
        return Result(**given)  # type: ignore[arg-type]

    return made
