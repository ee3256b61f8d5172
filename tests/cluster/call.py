# SPDX-License-Identifier: Apache-2.0
"""One request as the API sees it, apart from how it came in: who calls, what for, with which options."""

import time
from dataclasses import dataclass, field
from typing import Any

from cluster.resource import Resource

ADMIN = "system:admin"
ADMIN_GROUPS = ("system:masters", "system:authenticated")


@dataclass(slots=True)
class Call:
    """A request for a resource. `warnings` collects what goes into Warning headers."""

    verb: str
    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    user_agent: str = ""
    user: str = ADMIN
    groups: tuple[str, ...] = ADMIN_GROUPS
    field_manager: str = ""
    field_validation: str = "Warn"
    dry_run: bool = False
    force: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def manager(self) -> str:
        """The name under which fields are owned: the one given, or the client's."""
        return self.field_manager or self.user_agent.partition("/")[0][:128] or "unknown"


def now() -> str:
    """The time as metadata has it, in whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
