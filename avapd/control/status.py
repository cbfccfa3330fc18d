"""What `/status` and `/readyz` tell of a running control plane: plain values, for JSON, the page and people."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from avapd import __version__
from avapd.config import Config
from avapd.control import host
from avapd.control.certificates import Certificates
from avapd.control.plane import Plane
from avapd.control.supervisor import Slot
from avapd.control.traffic import Counts, Meter, Traffic, total
from avapd.shared.board import BUCKETS, CONNECTIONS

# Of what may be many, so many are shown; `avapd quarantine list` has all.
SHOWN: Final = 100


class Condition(NamedTuple):
    """One thing that readiness looks at. What is not `required` is told, and changes nothing (fail open)."""

    name: str
    ok: bool
    reason: str
    required: bool = True

    @property
    def mark(self) -> str:
        """How it stands, in a word."""
        return "ok" if self.ok else "failed" if self.required else "warns"


class Status:
    """Looks at the parts of a control plane. `draining` is set when the master begins to stop."""

    def __init__(self, plane: Plane, meter: Meter, config: Config, certificates: Certificates | None) -> None:
        self._board, self._poll, self._refresh, self._publisher, self._supervisor, self._notifications = plane
        self._meter = meter
        self._certificates = certificates
        self._environment, self._engine = config.environment, config.engine
        self._started, self._began = time.time(), time.monotonic()
        self.draining = False

    def conditions(self) -> list[Condition]:
        """Ready while a worker serves, and not draining; being cut off from the database does not change it."""
        serving, slots = self._supervisor.serving, len(self._supervisor.slots)
        some = f"{serving} of {slots} workers serve"
        current, refused, frozen = self._publisher.current, self._refresh.refused, self._refresh.switches.frozen
        held = len(self._refresh.quarantine.held)
        error, asked = self._poll.last_error, "answers" if self._refresh.source_up else "not asked yet"
        return [
            Condition("running", not self.draining, "draining" if self.draining else "not draining"),
            Condition(
                "catalog", current is not None,
                f"{len(current.view)} definitions" if current else f"no catalog yet: {error or 'loading'}",
            ),
            Condition("workers", serving > 0 or self.draining, some if serving else "no worker serves"),
            Condition("every_worker", serving == slots or self.draining, some, required=False),
            Condition("database", self._refresh.source_up and not error, error or asked, required=False),
            Condition("updates", not frozen, f"frozen: {frozen}" if frozen else "not frozen", required=False),
            Condition("candidate", refused is None, str(refused.error) if refused else "none refused", required=False),
            Condition("quarantine", not held, f"definitions that fail validation: {held}", required=False),
            *self._on_certificates(),
        ]  # fmt: skip

    def _on_certificates(self) -> Iterator[Condition]:
        """How those stand that clients are shown; nothing without TLS."""
        shown = self._certificates
        if shown is not None:
            first = f"the first expires on {utc(min(shown.expires.values()))}"
            reason = (
                f"the files hold what cannot be shown, the old ones are shown on; {first}" if shown.refused else first
            )
            yield Condition("certificates", not (shown.refused or shown.expire_soon), reason, required=False)

    def facts(self, *, buckets: bool = False) -> dict[str, Any]:
        """All of it; with `buckets` also the counters that rates and percentiles are made of."""
        current, times, refused = self._publisher.current, self._refresh.times, self._refresh.refused
        traffic, _ = self._meter.traffic()
        counters = total(self._meter.counts())
        workers = list(self._workers(buckets=buckets))
        return {
            "host": platform.node(),
            "version": __version__,
            "environment": self._environment,
            "engine": self._engine,
            "started": utc(self._started),
            "uptime_seconds": round(time.monotonic() - self._began, 1),
            "ready": all(one.ok for one in self.conditions() if one.required),
            "draining": self.draining,
            "count": len(current.view) if current else 0,
            "generation": self._publisher.generation,
            "version_hash": current.view.version_hash if current else None,
            "snapshot_bytes": current.total if current else 0,
            "canary": self._publisher.canary is not None,
            "source": self._refresh.origin or None,
            "last_attempt": utc(times.attempt),
            "last_check": utc(times.check),
            "last_change": utc(times.change),
            "last_activation": utc(times.activation),
            "catalog_age_seconds": round(time.time() - times.check, 1) if times.check else None,
            "database": {"up": self._refresh.source_up, "last_error": self._poll.last_error or None},
            "listening": self._notifications.listening,
            "certificates": {
                name: utc(at) for name, at in (self._certificates.expires if self._certificates else {}).items()
            },
            "polls": {**self._poll.results, "last_seconds": round(self._poll.duration_last, 4)},
            "rejected": self._refresh.rejected,
            "quarantined": self._refresh.quarantine.counts(),
            "quarantine": self._quarantine(),
            "unchecked": len(self._refresh.unchecked),
            **self._refresh.switches.facts(),
            "refused": str(refused.error) if refused else None,
            "publications": self._publications(),
            "memory": memory(os.getpid()),
            "connections": sum(one["connections"] for one in workers),
            **_told(counters, traffic, buckets=buckets),
            **({"bounds_seconds": BUCKETS} if buckets else {}),
            "workers": workers,
        }

    def rates(self) -> list[float]:
        """Calls in each of the last seconds, oldest first."""
        return list(self._meter.rates)

    def _workers(self, *, buckets: bool) -> Iterator[dict[str, Any]]:
        _, traffic = self._meter.traffic()
        for slot, counters, recent in zip(self._supervisor.slots, self._meter.counts(), traffic, strict=True):
            rows = (self._board.row(2 * slot.number), self._board.row(2 * slot.number + 1))
            connections = sum(row[CONNECTIONS] for row in rows)
            yield {**_worker(slot), "connections": connections, **_told(counters, recent, buckets=buckets)}

    def _quarantine(self) -> list[dict[str, Any]]:
        current, held = self._publisher.current, self._refresh.quarantine
        facts = held.facts(current.view if current is not None else None, SHOWN)
        return [{**one, "since": utc(one["since"])} for one in facts]

    def _publications(self) -> list[dict[str, Any]]:
        """Newest first; of the oldest it is not known what it changed."""
        entries = self._refresh.history.entries
        facts = [{**entry.facts(), "at": utc(entry.at), "diff": number > 0} for number, entry in enumerate(entries)]
        return facts[::-1]


def _worker(slot: Slot) -> dict[str, Any]:
    worker = slot.worker
    return {
        "worker": slot.number,
        "pid": worker.pid if worker else None,
        "state": worker.state.name if worker else "ABSENT",
        "generation": worker.generation if worker else 0,
        "restarts": slot.restarts,
        "uptime_seconds": round(time.monotonic() - worker.started_at, 1) if worker else None,
        "memory": memory(worker.pid) if worker else None,
    }


def _told(counters: Counts, traffic: Traffic, *, buckets: bool) -> dict[str, Any]:
    return {
        "calls": counters.calls,
        "errors": counters.errors,
        "rate": round(traffic.rate, 2),
        "error_rate": round(traffic.error_rate, 2),
        "p95_seconds": None if traffic.p95_seconds is None else round(traffic.p95_seconds, 7),
        **({"buckets": counters.buckets} if buckets else {}),
    }


def memory(pid: int) -> dict[str, int] | None:
    """Resident bytes of a process, and how many of them no other shares; None where the host does not tell.

    A worker's resident bytes hold the snapshot, which is the same memory in all of them.
    """
    lines = dict(line.split(":", 1) for line in host.process_status(pid).splitlines() if ":" in line)
    try:
        resident, private = (int(lines[name].split()[0]) << 10 for name in ("VmRSS", "RssAnon"))
    except (KeyError, ValueError, IndexError):
        return None
    return {"resident_bytes": resident, "private_bytes": private}


def utc(seconds: float) -> str | None:
    """A time for people and programs; None for never."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds") if seconds else None
