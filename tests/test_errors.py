"""Errors carry their exit code, whose fault they are, and what to do."""

from __future__ import annotations

import pytest

from avapd import errors
from avapd.errors import AvapdError, Exit, SourceError


def kinds(base: type[AvapdError]) -> list[type[AvapdError]]:
    """All errors below `base` that avapd.errors declares."""
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, base)]
    return [kind for kind in found if kind is not base]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ConfigError, 78),
        (errors.SourceUnreachableError, 69),
        (errors.SourceForbiddenError, 69),
        (errors.SourceShapeError, 69),
        (errors.CatalogTooLargeError, 69),
        (errors.SocketError, 69),
        (errors.CrashLoopError, 70),
        (errors.SnapshotError, 70),
    ],
)
def test_exit_codes_are_those_of_the_contract(kind: type[AvapdError], code: int) -> None:
    """Contract part 8: 78 configuration, 69 source or socket, 70 internal or crash loop, 0 clean."""
    assert int(kind.exit_code) == code
    assert int(Exit.OK) == 0


def test_a_hint_belongs_to_one_error_and_not_to_its_kind() -> None:
    """A hint given to one error never shows on the next."""
    assert SourceError("x", hint="look").hint == "look"
    assert SourceError("x").hint == ""
    assert errors.SourceForbiddenError("x").hint.startswith("grant")


def test_every_source_error_has_a_reason_of_its_own_and_a_hint() -> None:
    """The reason is a word for logs and metrics; the hint tells the operator what to do."""
    found = [kind for kind in kinds(SourceError) if issubclass(kind, SourceError)]
    reasons = [kind.reason for kind in found]
    assert len(set(reasons)) == len(reasons) == 4
    assert all(kind.hint for kind in found)


def test_a_config_error_names_all_its_problems() -> None:
    """The text holds each problem, and the list holds them one by one."""
    error = errors.ConfigError(["A is wrong", "B is missing"])
    assert error.problems == ["A is wrong", "B is missing"]
    assert str(error) == "A is wrong; B is missing"
