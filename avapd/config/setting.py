"""What a setting is: one declaration, from which everything else about it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, NamedTuple

_REQUIRED: Final = object()


class Setting(NamedTuple):
    """How one setting is read: its variables (the first is the canonical one), its parser and its help.

    `seen` is, of a limit, what a client sees that goes beyond it.
    """

    variables: tuple[str, ...]
    parse: Callable[[str], Any]
    help: str
    default_text: str
    secret: bool
    seen: str = ""

    @property
    def flag(self) -> str:
        """The command-line flag: `--refresh-seconds`; for a secret the path of a file that holds it."""
        name = self.variables[0].lower().removeprefix("avapd_").replace("_", "-")
        return f"--{name}-file" if self.secret else f"--{name}"


def setting(
    *variables: str,
    help: str,  # noqa: A002  # the field's name in click and argparse too
    parse: Callable[[str], Any] = str,
    default: Any = _REQUIRED,
    shown: str | None = None,
    secret: bool = False,
) -> Any:
    """A field of `Config` that declares a setting; `shown` is its default as people are told it."""
    text = "required" if default is _REQUIRED else shown if shown is not None else str(default)
    metadata = {"setting": Setting(variables, parse, help, text, secret)}
    if default is _REQUIRED:
        return dataclasses.field(metadata=metadata, repr=not secret)
    return dataclasses.field(metadata=metadata, default=default, repr=not secret)
