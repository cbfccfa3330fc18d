"""Start of a worker process: `python -m avapd.data FD worker-SLOT`, by the master alone.

FD is the worker's end of the channel; everything else it needs comes through it. The second argument is for people
who read `ps`.
"""

from __future__ import annotations

import faulthandler
import select
import signal
import socket
import sys

import uvloop

from avapd.data.worker import serve
from avapd.errors import Exit
from avapd.shared.channel import Channel, Start


def main() -> int:
    """Run a worker on the descriptor named by the first argument."""
    # Ctrl-C goes to the whole foreground group, but only the master decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The master sends SIGABRT to a worker that hangs: its stack is the best hint there is.
    faulthandler.enable()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    select.select([channel], [], [])
    try:
        (start, descriptors), *more = channel.receive()
    except EOFError:  # the master died before it said anything
        return Exit.INTERNAL
    if not isinstance(start, Start):
        return Exit.INTERNAL
    return uvloop.run(serve(start, descriptors, channel, more))


if __name__ == "__main__":
    sys.exit(main())
