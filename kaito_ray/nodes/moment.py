# SPDX-License-Identifier: Apache-2.0
"""Points in time and durations as Kubernetes writes them, to the second and in UTC. Pure."""

import re
from datetime import UTC, datetime, timedelta

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def render_moment(moment: datetime) -> str:
    """`2026-09-01T12:00:00Z`."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def parse_moment(text: object) -> datetime | None:
    """The moment that was written; None for anything else, which somebody may have edited."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def parse_duration(text: str) -> timedelta | None:
    """`1h30m`, `30m`, `90s`; None for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if not match or not any(match.groups()):
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)
