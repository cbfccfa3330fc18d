"""The parts of a running control plane, for those who only look at them or order them about."""

from __future__ import annotations

from typing import NamedTuple

from avapd.control.poll import Poll
from avapd.control.publisher import Publisher
from avapd.control.refresh import Refresh
from avapd.control.source.listener import Notifications
from avapd.control.supervisor import Supervisor
from avapd.shared.board import Board


class Plane(NamedTuple):
    """What the metrics, the admin port and the operator's orders work on."""

    board: Board
    poll: Poll
    refresh: Refresh
    publisher: Publisher
    supervisor: Supervisor
    notifications: Notifications
