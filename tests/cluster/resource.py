# SPDX-License-Identifier: Apache-2.0
"""What the API serves: one `Resource` per group, version and plural, and the registry of them.

Built-in resources stand in `builtin.py`; CustomResourceDefinitions add theirs at run time (`definition.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from cluster.schema import Node

Object: TypeAlias = dict[str, Any]
ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A printer column: `path` is a JSONPath below the object, priority above 0 shows with `-o wide` only."""

    name: str
    type: str
    path: str
    format: str = ""
    description: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """One served version of a resource.

    `schema` types an object for server-side apply, decoding and (for custom resources) validation.
    `spec_generation` says that metadata.generation counts changes; `custom` that the schema validates.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    schema: Node
    singular: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: frozenset[str] = frozenset()
    verbs: tuple[str, ...] = ALL_VERBS
    columns: tuple[Column, ...] = ()
    custom: bool = False
    spec_generation: bool = False
    storage_version: str = ""
    deprecation: str = ""
    selectable_fields: tuple[str, ...] = ()
    table_name: str = ""

    @property
    def api_version(self) -> str:
        """`group/version`, or `version` alone in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """`plural.group` as messages spell it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def table(self) -> str:
        """The key of the store's table, shared by all versions."""
        return self.table_name or self.qualified

    def has_status(self) -> bool:
        """Whether status is written through its own subresource."""
        return "status" in self.subresources


class Registry:
    """All resources served now, found by path or by table."""

    def __init__(self) -> None:
        self._by_path: dict[tuple[str, str, str], Resource] = {}

    def add(self, resource: Resource) -> None:
        """Serve a resource, or its new definition."""
        self._by_path[resource.group, resource.version, resource.plural] = resource

    def remove(self, group: str, plural: str) -> None:
        """Stop serving every version of a resource."""
        for key in [key for key in self._by_path if key[0] == group and key[2] == plural]:
            del self._by_path[key]

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        """The resource at a path."""
        return self._by_path.get((group, version, plural))

    def of_kind(self, api_version: str, kind: str) -> Resource | None:
        """The resource of a kind."""
        for resource in self._by_path.values():
            if resource.kind == kind and resource.api_version == api_version:
                return resource
        return None

    def named(self, qualified: str) -> Resource:
        """A served version of `plural.group`, the storage version where there are several.

        Raises KeyError when nothing of that name is served.
        """
        plural, _, group = qualified.partition(".")
        found = self.versions(group, plural)
        if not found:
            raise KeyError(qualified)
        return next((one for one in found if one.version == one.storage_version), found[0])

    def versions(self, group: str, plural: str) -> list[Resource]:
        """The served versions of a resource."""
        return [one for key, one in self._by_path.items() if key[0] == group and key[2] == plural]

    def has_group_version(self, group: str, version: str) -> bool:
        """Whether anything is served there."""
        return any(key[0] == group and key[1] == version for key in self._by_path)

    def __iter__(self) -> Iterator[Resource]:
        return iter(list(self._by_path.values()))
