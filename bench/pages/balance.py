"""How evenly connections fall on workers: balls into bins, simulated with a fixed seed.

The kernel gives each new connection to the worker that a hash of its addresses names (SO_REUSEPORT), whatever that
worker has to do; a Service before several pods draws as blindly. All connections are taken to ask for as much.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from typing import Final, NamedTuple

from bench.pages.stats import percentile

DRAWS: Final = 400
_SEED: Final = 1


class Balance(NamedTuple):
    """The busiest worker's connections as a multiple of the mean over all workers: median and P99 of the draws."""

    median: float
    p99: float

    @property
    def usable(self) -> float:
        """Share of all workers' capacity that is in use when the busiest one is full, in the median draw."""
        return 1 / self.median

    @property
    def usable_p99(self) -> float:
        """The same in a draw as bad as one in a hundred."""
        return 1 / self.p99


@functools.cache
def balance(connections: int, workers: int, draws: int = DRAWS) -> Balance:
    """Let so many connections fall on up to 256 workers, `draws` times over."""
    source = random.Random(_SEED)
    # Octets, drawn and counted in C: those beyond the last whole multiple of `workers` are thrown away, the rest taken
    # modulo `workers`, so that each worker is as likely as any other.
    whole = 256 // workers * workers
    beyond, folded = bytes(range(whole, 256)), bytes(octet % workers for octet in range(256))
    busiest = []
    for _ in range(draws):
        fallen = b""
        while len(fallen) < connections:
            fallen += source.randbytes(2 * connections).translate(folded, beyond)
        busiest.append(max(Counter(fallen[:connections]).values()) * workers / connections)
    return Balance(percentile(busiest, 50), percentile(busiest, 99))
