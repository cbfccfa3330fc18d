"""Certificates in the master: what a host that is short of something does to a change, and when renewal is due."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.certificates import Folder, days_on
from support.lines import Lines
from support.stage import files

from avapd import config
from avapd.control import certificates as module
from avapd.control.certificates import Certificates, Validity
from avapd.errors import CertificateError
from avapd.log import Log
from avapd.shared import memory

DAY = 86_400
BASE = {"DATABASE_URL": "postgresql://reader@db/avap", "API_KEY": "test-key-of-enough-length", "AVAPD_ENV": "test"}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, trustme.CA())


def certificates(folder: Folder) -> tuple[Certificates, Lines]:
    lines = Lines()
    return Certificates(config.load(BASE | folder.settings(mutual=True)), Log("master", sink=lines)), lines


def test_a_change_that_the_host_has_no_means_for_is_refused_and_taken_later(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor left: an ERROR, the old one stays, nothing is left open; the next look takes it."""
    made, lines = certificates(folder)
    shown: list[bytes] = []
    made.publish_to(lambda _message, fd: shown.append(os.pread(fd, 100_000, 0)))
    folder.rotate()

    def fail(*_: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = files()
    monkeypatch.setattr(memory, "create", fail)
    made.reload()
    assert (made.refused, len(shown)) == (True, 1)
    assert "Too many open files" in lines.said("Certificates Refused")[0]["error"]
    with pytest.raises(CertificateError, match="cannot be tried now: Too many open files"):
        module.prove(module.read(made._config))
    monkeypatch.undo()
    made.reload()
    assert (made.refused, len(shown)) == (False, 2)
    assert shown[1] != shown[0]
    assert files() == before


@pytest.mark.parametrize(("days", "left"), [(6, 2), (30, 10), (90, 14), (365, 14)])
def test_renewal_is_due_a_third_of_the_time_before_the_end(days: int, left: int) -> None:
    """And 14 days at most: one that lives for six is not late on its first day."""
    assert Validity(0, days * DAY).renewal == (days - left) * DAY


def test_what_should_have_been_renewed_expires_soon(folder: Folder) -> None:
    """A short one that is young does not; an old one does."""
    folder.rotate(not_before=days_on(-1), not_after=days_on(5))
    assert not certificates(folder)[0].expire_soon
    folder.rotate(not_before=days_on(-5), not_after=days_on(1))
    assert certificates(folder)[0].expire_soon
