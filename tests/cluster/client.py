# SPDX-License-Identifier: Apache-2.0
"""A small synchronous client for tests, for simulated and real clusters alike."""

import functools
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import yaml
from kubernetes import config

from cluster.resource import Object


class Refused(Exception):
    """The API's refusal: `code`, and the Status object as `status`."""

    def __init__(self, code: int, body: str) -> None:
        super().__init__(f"{code}: {body[:2000]}")
        self.code = code
        try:
            self.status: dict[str, Any] = json.loads(body)
        except ValueError:
            self.status = {"message": body}

    @property
    def message(self) -> str:
        """The sentence of the Status."""
        return str(self.status.get("message", ""))


class Access(NamedTuple):
    """How to reach an API server: files of PEM, and the value of the Authorization header."""

    host: str
    authority: str
    certificate: str
    key: str
    token: str


class Client:
    """Whole objects in and out, as dictionaries; a kind's plural comes from discovery."""

    def __init__(self, kubeconfig: Path, patience: float = 1.0) -> None:
        """`patience` stretches every wait, for clusters that are slower than a simulated one."""
        self._patience = patience
        self._api = config.new_client_from_config(str(kubeconfig))  # type: ignore[no-untyped-call]
        self._api.set_default_header("User-Agent", "test-client")
        self._plurals: dict[tuple[str, str], tuple[str, bool]] = {}

    def access(self) -> Access:
        """What the kubeconfig says."""
        found = self._api.configuration
        token = found.get_api_key_with_prefix("BearerToken") or found.get_api_key_with_prefix("authorization") or ""
        if token and not token.startswith("Bearer "):
            token = f"Bearer {token}"
        return Access(found.host, found.ssl_ca_cert or "", found.cert_file or "", found.key_file or "", token)

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json", **query: Any
    ) -> Any:
        """One request; the answer as parsed JSON, or text. Raises Refused."""
        url = self._api.configuration.host + path
        if query:
            url += "?" + urlencode({key: value for key, value in query.items() if value not in (None, "")})
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": "test-client"}
        token = self.access().token
        if token:
            headers["Authorization"] = token
        answer = self._api.call_api(method, url, headers, body)
        text = (answer.read() or b"").decode()
        if answer.status >= 400:
            raise Refused(answer.status, text)
        try:
            return json.loads(text)
        except ValueError:
            return text

    def path(self, api_version: str, kind: str, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The path of an object or a collection."""
        plural, namespaced = self._plural(api_version, kind)
        path = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        if namespaced and namespace:
            path += f"/namespaces/{namespace}"
        return "/".join(filter(None, (f"{path}/{plural}", quote(name), subresource)))

    def create(self, obj: Object, **query: Any) -> Object:
        """Create an object."""
        made: Object = self.request("POST", self._of(obj, named=False), obj, **query)
        return made

    def apply(
        self, obj: Object, manager: str = "test", *, force: bool = False, subresource: str = "", **query: Any
    ) -> Object:
        """Server-side apply."""
        options = {"fieldManager": manager, "force": "true" if force else "", **query}
        applied: Object = self.request(
            "PATCH", self._of(obj, subresource=subresource), obj, "application/apply-patch+yaml", **options
        )
        return applied

    def replace(self, obj: Object, subresource: str = "", **query: Any) -> Object:
        """PUT."""
        replaced: Object = self.request("PUT", self._of(obj, subresource=subresource), obj, **query)
        return replaced

    def get(self, api_version: str, kind: str, name: str, namespace: str = "", subresource: str = "") -> Object:
        """Read an object."""
        found: Object = self.request("GET", self.path(api_version, kind, namespace, name, subresource))
        return found

    def find(self, api_version: str, kind: str, name: str, namespace: str = "") -> Object | None:
        """Read an object, or None when there is none."""
        try:
            return self.get(api_version, kind, name, namespace)
        except Refused as refusal:
            if refusal.code == 404:
                return None
            raise

    def list(self, api_version: str, kind: str, namespace: str = "", **query: Any) -> "list[Object]":
        """The objects of a collection, with their kind and version filled in."""
        found = self.request("GET", self.path(api_version, kind, namespace), **query)["items"]
        return [{"apiVersion": api_version, "kind": kind, **obj} for obj in found]

    def patch(self, obj: Object, changes: Any, subresource: str = "", content_type: str = "", **query: Any) -> Object:
        """A merge patch, or a JSON patch when `changes` is a list."""
        kind = content_type or f"application/{'json' if isinstance(changes, list) else 'merge'}-patch+json"
        patched: Object = self.request("PATCH", self._of(obj, subresource=subresource), changes, kind, **query)
        return patched

    def delete(self, obj: Object, **options: Any) -> Any:
        """Delete an object; options are those of DeleteOptions."""
        return self.request("DELETE", self._of(obj), {"kind": "DeleteOptions", "apiVersion": "v1", **options})

    def install(self, definitions: Iterable[Path], timeout_s: float = 20.0, *, renew: bool = False) -> None:
        """Create the CustomResourceDefinitions of files that are not there, and wait until they are served.

        `renew` changes those that are there to what the files say.
        """
        self.define((document for path in definitions for document in _documents(path)), timeout_s, renew=renew)

    def define(self, definitions: Iterable[Object], timeout_s: float = 20.0, *, renew: bool = False) -> None:
        """The same with the definitions themselves."""
        for document in definitions:
            name = document["metadata"]["name"]
            if self.find(document["apiVersion"], document["kind"], name) is None:
                self.create(document)
            elif renew:
                self.apply(document, force=True)
            self.wait(
                functools.partial(self.get, document["apiVersion"], document["kind"], name),
                lambda found: condition_of(found, "Established") == "True",
                timeout_s,
            )
            self.wait(functools.partial(self._serves, document), bool, timeout_s)

    def _serves(self, definition: Object) -> bool:
        """Whether every version of a definition can be listed: an established one may take a moment more."""
        spec = definition["spec"]
        try:
            for version in spec["versions"]:
                if version["served"]:
                    self.request("GET", f"/apis/{spec['group']}/{version['name']}")
                    self.request("GET", f"/apis/{spec['group']}/{version['name']}/{spec['names']['plural']}", limit=1)
        except Refused as refusal:
            if refusal.code in (404, 429, 503):
                return False
            raise
        return True

    def wait(self, read: Callable[[], Any], wanted: Callable[[Any], bool], timeout_s: float = 10.0) -> Any:
        """What `read` gives once it is as wanted; fails with the last of it otherwise."""
        deadline = time.monotonic() + timeout_s * self._patience
        while True:
            seen = read()
            if wanted(seen):
                return seen
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s} s; last seen: {json.dumps(seen, default=str)[:4000]}")
            time.sleep(0.02)

    def _of(self, obj: Object, *, named: bool = True, subresource: str = "") -> str:
        metadata = obj["metadata"]
        name = metadata["name"] if named else ""
        return self.path(obj["apiVersion"], obj["kind"], metadata.get("namespace", ""), name, subresource)

    def _plural(self, api_version: str, kind: str) -> tuple[str, bool]:
        found = self._plurals.get((api_version, kind))
        if found is None:
            path = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
            for one in self.request("GET", path)["resources"]:
                if "/" not in one["name"]:
                    self._plurals[api_version, one["kind"]] = (one["name"], one["namespaced"])
            found = self._plurals.get((api_version, kind))
            if found is None:
                raise Refused(404, f"no {kind} in {api_version}")
        return found


@functools.cache
def _documents(path: Path) -> list[Object]:
    """The documents of a YAML or JSON file; definitions are long, and many tests read the same."""
    if path.suffix == ".json":
        return [json.loads(path.read_text())]
    return list(yaml.load_all(path.read_text(), yaml.CSafeLoader))


def condition_of(obj: Object, kind: str) -> str:
    """The status of a condition, or an empty string."""
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return next((str(one["status"]) for one in conditions if one["type"] == kind), "")
