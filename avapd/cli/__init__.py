"""The commands of avapd."""

from avapd.cli import ask, database, fleet, orders, server, top
from avapd.cli.group import cli, main

__all__ = ["ask", "cli", "database", "fleet", "main", "orders", "server", "top"]
