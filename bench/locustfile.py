"""Users of avapd, for locust: each calls as fast as it is answered, on a connection of its own.

    python3 -m venv ~/locust && ~/locust/bin/pip install . locust==2.47.0
    export API_KEY=...    # or API_KEY_FILE
    ~/locust/bin/locust -f bench/locustfile.py --host 127.0.0.1:50051 --headless -u 10 -r 10 -t 10s

It measures locust rather than avapd: a call costs Python's client many times what it costs the server, so that one core
of locust is full while a worker is nearly idle, and with more users they wait for locust. It is good for charts, for a
mix of calls and for a steady load; what avapd can do, bench/README.md tells.
"""

# Where mypy runs, locust is not installed:
# mypy: disable-error-code="import-not-found, misc, untyped-decorator"

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any, ClassVar, Final

import grpc
import grpc.experimental.gevent
from google.protobuf.message import Message
from locust import User, events, task

from avapd.client import CallError, Client
from avapd.config import parsers
from avapd.pb import avap_pb2

_SERVICE: Final = "/avap.DefinitionEngine/"
_OPTIONS: Final = [
    ("grpc.use_local_subchannel_pool", 1),  # without it, channels to one server share a connection
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]
_DEADLINE_SECONDS: Final = 20.0

grpc.experimental.gevent.init_gevent()


class DefinitionUser(User):
    """Asks for definitions, seldom for the catalog or for a name that nobody has."""

    host = "127.0.0.1:50051"
    key: ClassVar[str]
    names: ClassVar[list[str]]

    def on_start(self) -> None:
        """Connect, with the first call."""
        self._channel = grpc.insecure_channel(self.host, options=_OPTIONS)

    def on_stop(self) -> None:
        """Disconnect."""
        self._channel.close()

    @task(100)
    def get_command(self) -> None:
        """Any of the definitions."""
        self._call("GetCommand", avap_pb2.CommandRequest(name=random.choice(self.names)))

    @task
    def sync_catalog(self) -> None:
        """The whole catalog."""
        self._call("SyncCatalog", avap_pb2.Empty())

    @task
    def unknown_name(self) -> None:
        """NOT_FOUND is the right answer."""
        self._call("GetCommand", avap_pb2.CommandRequest(name="nobody"), "GetCommand (unknown)", "NOT_FOUND")

    def _call(self, method: str, request: Message, name: str = "", expected: str = "OK") -> None:
        call = self._channel.unary_unary(_SERVICE + method)
        message, metadata = request.SerializeToString(), (("x-avap-auth", self.key),)
        answer, status, said = b"", "OK", ""
        start = time.perf_counter()
        try:
            answer = call(message, timeout=_DEADLINE_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            status, said = error.code().name, error.details()
        self.environment.events.request.fire(
            request_type="gRPC",
            name=name or method,
            response_time=(time.perf_counter() - start) * 1e3,
            response_length=len(answer),
            exception=None if status == expected else CallError(status, said),
            context={},
        )


@events.test_start.add_listener
def learn(environment: Any, **_more: Any) -> None:
    """The key and the names, before there are users."""
    path = os.environ.get("API_KEY_FILE")
    DefinitionUser.key, *_others = parsers.api_keys(Path(path).read_text("ascii") if path else os.environ["API_KEY"])
    with Client(environment.host or DefinitionUser.host, DefinitionUser.key) as client:
        DefinitionUser.names = [definition.name for definition in client.catalog().definitions]
