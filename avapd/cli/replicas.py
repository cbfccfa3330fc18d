"""Asking replicas for their status, by their admin ports."""

from __future__ import annotations

import asyncio
from typing import Any, Final

_PORT: Final = 9464
# Whoever answers there may be anybody.
_MOST_OCTETS: Final = 8 << 20


def address_of(host: str) -> str:
    """HOST:PORT, with the usual port where there is none; a colon in an IPv6 address stands in brackets."""
    return host if host.rpartition("]")[2].count(":") else f"{host}:{_PORT}"


async def statuses(hosts: tuple[str, ...], seconds: float, query: str = "") -> list[dict[str, Any] | str]:
    """What each says of itself; where there is no answer in time, why."""
    import aiohttp  # noqa: PLC0415  # the other commands start faster without

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session:
        urls = [f"http://{address_of(host)}/status{query}" for host in hosts]
        return list(await asyncio.gather(*(_status(session, url) for url in urls)))


async def _status(session: Any, url: str) -> dict[str, Any] | str:
    import aiohttp  # noqa: PLC0415
    import orjson  # noqa: PLC0415

    body = bytearray()
    try:
        async with session.get(url, headers={"Accept": "application/json"}) as answer:
            async for part in answer.content.iter_any():
                body += part
                if len(body) > _MOST_OCTETS:
                    return "no answer: too long for a status"
        found = orjson.loads(body)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return f"no answer: {type(error).__name__}"
    return found if isinstance(found, dict) else "no answer: not a status"
