# SPDX-License-Identifier: Apache-2.0
"""Who calls, and whether RBAC lets them: the administrator may do all, a service account what its roles say."""

from collections.abc import Iterator, Mapping

from cluster import failure
from cluster.call import ADMIN, ADMIN_GROUPS, Call
from cluster.failure import Failure
from cluster.resource import Object
from cluster.store import Store

_RBAC = "rbac.authorization.k8s.io"
_TOKEN = "service-account"
User = tuple[str, tuple[str, ...]]


def service_account_token(namespace: str, name: str) -> str:
    """The bearer token of a service account; it needs no secret, the server is a test's own."""
    return f"{_TOKEN}/{namespace}/{name}"


def user_of(authorization: str, admin_token: str) -> User:
    """The user behind an Authorization header; without one, the administrator. Raises Failure (401)."""
    token = authorization.removeprefix("Bearer ").strip()
    if token in ("", admin_token):
        return ADMIN, ADMIN_GROUPS
    kind, _, rest = token.partition("/")
    namespace, _, name = rest.partition("/")
    if kind != _TOKEN or not name:
        raise Failure("Unauthorized", "Unauthorized")
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    return f"system:serviceaccount:{namespace}:{name}", groups


def impersonated(user: User, headers: Mapping[str, str]) -> User:
    """The user a request acts as: an administrator may name another (`kubectl --as`)."""
    name = headers.get("impersonate-user")
    if not name or "system:masters" not in user[1]:
        return user
    group = headers.get("impersonate-group")
    return name, (*((group,) if group else ()), "system:authenticated")


class Access:
    """RBAC over the roles and bindings that are stored."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def check(self, call: Call, verb: str = "") -> None:
        """Raise Failure (403) unless the caller may do this."""
        verb = verb or call.verb
        resource = call.resource
        plural = f"{resource.plural}/{call.subresource}" if call.subresource else resource.plural
        if self.allows((call.user, call.groups), verb, resource.group, plural, call.namespace, call.name):
            return
        where = f'in the namespace "{call.namespace}"' if call.namespace else "at the cluster scope"
        named = f'{resource.qualified} "{call.name}"' if call.name else resource.qualified
        why = f'User "{call.user}" cannot {verb} resource "{plural}" in API group "{resource.group}" {where}'
        details = {"name": call.name} if call.name else {}
        if resource.group:
            details["group"] = resource.group
        details["kind"] = resource.plural
        raise failure.Failure("Forbidden", f"{named} is forbidden: {why}", details=details)

    def allows(self, user: User, verb: str, group: str, plural: str, namespace: str, name: str) -> bool:
        """Whether some rule bound to the user covers a request."""
        if "system:masters" in user[1]:
            return True
        if (
            verb == "create"
            and group in ("authorization.k8s.io", "authentication.k8s.io")
            and plural.startswith("selfsub")
        ):
            return True
        return any(_covers(rule, verb, group, plural, name) for rule in self._rules(user, namespace))

    def allows_path(self, user: User, verb: str, path: str) -> bool:
        """Whether the user may ask for a path that is no resource; discovery is open to everybody known."""
        if "system:masters" in user[1] or path in ("/healthz", "/readyz", "/livez", "/version"):
            return True
        if path.startswith(("/api", "/apis", "/openapi")):
            return True
        return any(
            verb in rule.get("verbs", ()) and path in rule.get("nonResourceURLs", ()) for rule in self._rules(user, "")
        )

    def _rules(self, user: User, namespace: str) -> Iterator[Object]:
        for entry in list(self._store.table(f"clusterrolebindings.{_RBAC}").selected("")):
            if _binds(entry.object, user):
                yield from self._role_rules(entry.object["roleRef"], "")
        if namespace:
            for entry in list(self._store.table(f"rolebindings.{_RBAC}").selected(namespace)):
                if _binds(entry.object, user):
                    yield from self._role_rules(entry.object["roleRef"], namespace)

    def _role_rules(self, reference: Object, namespace: str) -> Iterator[Object]:
        if reference["kind"] == "ClusterRole":
            entry = self._store.get(f"clusterroles.{_RBAC}", "", reference["name"])
        else:
            entry = self._store.get(f"roles.{_RBAC}", namespace, reference["name"])
        if entry is not None:
            yield from entry.object.get("rules") or ()


def _binds(binding: Object, user: User) -> bool:
    name, groups = user
    for subject in binding.get("subjects") or ():
        if subject["kind"] == "ServiceAccount":
            if name == f"system:serviceaccount:{subject.get('namespace', '')}:{subject['name']}":
                return True
        elif (subject["kind"] == "Group" and subject["name"] in groups) or (
            subject["kind"] == "User" and subject["name"] == name
        ):
            return True
    return False


def _covers(rule: Object, verb: str, group: str, plural: str, name: str) -> bool:
    subresource = plural.partition("/")[2]
    names = {"*", plural} | ({f"*/{subresource}"} if subresource else set())
    return (
        bool({verb, "*"} & set(rule.get("verbs", ())))
        and bool({group, "*"} & set(rule.get("apiGroups", ())))
        and bool(names & set(rule.get("resources", ())))
        and (not rule.get("resourceNames") or name in rule["resourceNames"])
    )
