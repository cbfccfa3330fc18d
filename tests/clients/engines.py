"""The engines that real clients are tried on: the default one, or with AVAPD_TEST_ENGINES=all each.

Both engines pass; one is enough for every day, since each client is a minute of CPU.
"""

from __future__ import annotations

import os

from avapd import config

ENGINES = config.ENGINES if os.environ.get("AVAPD_TEST_ENGINES") == "all" else config.ENGINES[:1]
