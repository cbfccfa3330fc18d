"""The pages of deploy/ as tests read them: sections, anchors, commands of avapd, and what must be seen after one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DEPLOY = Path(__file__).parents[2] / "deploy"
PAGES = sorted(DEPLOY.rglob("*.md"))
# `avapd` first, or after what starts it somewhere else; its own name may be a container's, too.
_AVAPD = re.compile(r"(?:.* (?:--|exec \S+|--entrypoint avapd) )?avapd (?=[a-z])")


class Step(NamedTuple):
    """A command of a page, and the lines that must be seen after it; `…` stands for anything, alone for any lines."""

    command: str
    seen: tuple[str, ...]

    def matches(self, output: str) -> bool:
        """Whether this is what must be seen; blanks at the end of a line do not count."""
        pattern = "".join(
            r"(?:.*\n)*" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r" *\n" for line in self.seen
        )
        whole = output if output.endswith("\n") or not output else output + "\n"
        return re.fullmatch(pattern, whole) is not None


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def sections(page: Path) -> dict[str, str]:
    """What stands below each heading of the second level."""
    _, *found = re.split(r"^## (.+)$", text(page), flags=re.MULTILINE)
    return dict(zip(found[::2], found[1::2], strict=True))


def anchors(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", text(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def steps(section: str) -> list[Step]:
    """The lines that begin with `$` and what stands below each of them."""
    found: list[Step] = []
    indent: int | None = None
    for line in section.splitlines():
        if match := re.fullmatch(r"(\s{4,})\$ (.+)", line):
            indent = len(match[1])
            found.append(Step(match[2], ()))
        elif indent is not None and line[:indent].isspace() and len(line) > indent:
            found[-1] = found[-1]._replace(seen=(*found[-1].seen, line[indent:]))
        else:
            indent = None
    return found


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `avapd` of every command of it that a page names, in its blocks and between its lines."""
    for line in code(page):
        for part in re.split(r"&&|\||;", re.sub(r"\s[#>].*", "", line)):
            if found := _AVAPD.match(part.strip()):
                # What is in brackets may be left out.
                yield shlex.split(re.sub(r"\[.*?\]", "", part.strip()[found.end() :]))


def code(page: Path) -> Iterator[str]:
    """What is set as code: lines of blocks, without their `$`, and what stands in backquotes."""
    for line in text(page).splitlines():
        if re.match(r" {4}", line):
            yield line.strip().removeprefix("$ ")
        else:
            yield from re.findall(r"`([^`]+)`", line)
