# SPDX-License-Identifier: Apache-2.0
"""Points in time as Kubernetes writes them, to the second and in UTC. Pure."""

from datetime import UTC, datetime


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
