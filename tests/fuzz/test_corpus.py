"""What fuzzing has found worth keeping is run again, without Atheris: every input of every corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz import targets
from fuzz.__main__ import CORPUS, TARGETS


def inputs(target: str) -> list[Path]:
    return sorted((CORPUS / target).iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_still_holds(target: str) -> None:
    """Each target's claims are true of its whole corpus, and of what its inputs begin with."""
    run = targets.load(target)
    for path in inputs(target):
        data = path.read_bytes()
        run(data)
        for end in range(0, min(len(data), 40), 13):
            run(data[:end])


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_is_small(target: str) -> None:
    """Some hundred files at most, none above 4 KiB: it must stay readable, and this run short."""
    sizes = [path.stat().st_size for path in inputs(target)]
    assert 10 <= len(sizes) <= 400
    assert max(sizes) <= 4096
