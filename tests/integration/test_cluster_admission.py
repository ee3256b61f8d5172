# SPDX-License-Identifier: Apache-2.0
"""Admission webhooks on the test cluster: really called over HTTPS, with their failures handled as configured."""

import base64
import datetime
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster.client import Client, Refused
from cluster.fixture import Cluster
from cluster.server import TestCluster
from cluster.widget import a_widget

ADMISSION = "admissionregistration.k8s.io/v1"
NAME = "test.kaito-ray.io"

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def a_certificate(folder: Path, *hosts: str) -> tuple[Path, bytes]:
    """A file with key and self-signed certificate, and the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "webhook")])
    today = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(host) for host in hosts]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(minutes=5))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([*names, x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "webhook.pem"
    path.write_bytes(text + pem)
    return path, pem


class Webhook:
    """An HTTPS server that answers reviews as `answer` says, and remembers the requests."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answer: Answer = lambda _: {"allowed": True}
        path, self.certificate = a_certificate(folder, "hooks.default.svc")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = json.loads(body)["request"]
                if self.path.startswith("/probe"):
                    response = {"uid": request["uid"], "allowed": False}
                else:
                    outer.requests.append(request)
                    response = {"uid": request["uid"], **outer.answer(request)}
                envelope = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
                text = json.dumps({**envelope, "response": response})
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Slow answers are waited for at the end, so that both sides close their connections.
        self._server.daemon_threads = False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def webhook(tmp_path: Path, cluster: Cluster) -> Iterator[Webhook]:
    made = Webhook(tmp_path)
    yield made
    for kind in ("Validating", "Mutating"):
        left = cluster.client.find(ADMISSION, f"{kind}WebhookConfiguration", NAME)
        if left is not None:
            cluster.client.delete(left)
    cluster.client.wait(lambda: _asked(cluster.client), lambda asked: not asked)
    made.stop()


def _asked(client: Client) -> bool:
    """Whether the API server asks the webhooks of the test's configuration: one of them refuses this ConfigMap."""
    probe = {"name": "probe", "namespace": "default", "labels": {"probe": NAME}}
    try:
        client.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": probe}, dryRun="All")
    except Refused as refused:
        if "probe.test.kaito-ray.io" not in refused.message:
            raise
        return True
    return False


def configure(client: Client, webhook: Webhook, kind: str = "Validating", **hook: Any) -> None:
    """Have the API server ask the webhook about widgets, and wait until it does."""
    client.create(configuration(webhook, kind, **hook))
    client.wait(lambda: _asked(client), bool)


def configuration(webhook: Webhook, kind: str = "Validating", **hook: Any) -> dict[str, Any]:
    """A configuration with one webhook for widgets."""
    whole: dict[str, Any] = {
        "name": "widgets.test.kaito-ray.io",
        "clientConfig": {"url": f"{webhook.url}/check", "caBundle": base64.b64encode(webhook.certificate).decode()},
        "rules": [
            {
                "apiGroups": ["test.kaito-ray.io"],
                "apiVersions": ["v1"],
                "operations": ["CREATE", "UPDATE", "DELETE"],
                "resources": ["widgets"],
            }
        ],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
    probe = {
        **whole,
        "name": "probe.test.kaito-ray.io",
        "clientConfig": {**whole["clientConfig"], "url": f"{webhook.url}/probe"},
        "rules": [rule],
        "objectSelector": {"matchLabels": {"probe": NAME}},
    }
    return {
        "apiVersion": ADMISSION,
        "kind": f"{kind}WebhookConfiguration",
        "metadata": {"name": NAME},
        "webhooks": [{**whole, **hook}, probe],
    }


def refusal(action: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        action()
    return caught.value


def test_a_validating_webhook_sees_every_operation(widgets: Client, webhook: Webhook) -> None:
    configure(widgets, webhook)
    made = widgets.create(a_widget())
    widgets.patch(made, {"tags": ["a"]})
    widgets.patch(made, {"status": {"state": "s"}}, subresource="status")
    widgets.apply(a_widget("x"), "one", dryRun="All")
    widgets.delete(made)
    seen = [(one["operation"], one["name"], one["dryRun"]) for one in webhook.requests]
    assert seen == [("CREATE", "w", False), ("UPDATE", "w", False), ("CREATE", "x", True), ("DELETE", "w", False)]
    assert webhook.requests[1]["oldObject"]["metadata"]["uid"] == made["metadata"]["uid"]
    assert webhook.requests[1]["object"]["tags"] == ["a"]
    assert webhook.requests[3]["object"] is None
    assert webhook.requests[0]["userInfo"]["username"]


def test_a_refusal_reaches_the_client_with_message_and_code(widgets: Client, webhook: Webhook) -> None:
    configure(widgets, webhook)
    webhook.answer = lambda _: {"allowed": False, "status": {"code": 403, "message": "not today"}}
    seen = refusal(lambda: widgets.create(a_widget()))
    expected = 'admission webhook "widgets.test.kaito-ray.io" denied the request: not today'
    assert (seen.code, seen.message) == (403, expected)


def test_warnings_become_headers(widgets: Client, cluster: Cluster, kubectl: Any, webhook: Webhook) -> None:
    configure(widgets, webhook)
    webhook.answer = lambda _: {"allowed": True, "warnings": ["this size was retired"]}
    printed = kubectl("apply", "-f", "-", stdin=json.dumps(a_widget(namespace=cluster.namespace)))
    assert "Warning: this size was retired" in printed


def test_a_mutating_webhook_changes_what_is_stored(widgets: Client, webhook: Webhook) -> None:
    configure(widgets, webhook, "Mutating")
    patch = [{"op": "add", "path": "/tags", "value": ["from the webhook"]}]
    encoded = base64.b64encode(json.dumps(patch).encode()).decode()
    webhook.answer = lambda _: {"allowed": True, "patchType": "JSONPatch", "patch": encoded}
    assert widgets.create(a_widget())["tags"] == ["from the webhook"]


@pytest.mark.parametrize("policy", ["Fail", "Ignore"])
def test_a_webhook_out_of_reach(widgets: Client, webhook: Webhook, policy: str) -> None:
    bundle = base64.b64encode(webhook.certificate).decode()
    client_config = {"url": "https://127.0.0.1:9/check", "caBundle": bundle}
    configure(widgets, webhook, clientConfig=client_config, failurePolicy=policy, timeoutSeconds=1)
    if policy == "Ignore":
        widgets.create(a_widget())
        return
    seen = refusal(lambda: widgets.create(a_widget()))
    assert (seen.code, seen.status["reason"]) == (500, "InternalError")
    assert 'failed calling webhook "widgets.test.kaito-ray.io": failed to call webhook: Post' in seen.message


def test_an_untrusted_certificate_counts_as_out_of_reach(widgets: Client, webhook: Webhook, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    _, stranger = a_certificate(other)
    client_config = {"url": f"{webhook.url}/check", "caBundle": base64.b64encode(stranger).decode()}
    configure(widgets, webhook, clientConfig=client_config)
    assert (
        "tls: failed to verify certificate: x509: certificate signed by unknown authority"
        in refusal(lambda: widgets.create(a_widget())).message
    )
    assert webhook.requests == []


def test_a_slow_webhook_times_out(widgets: Client, webhook: Webhook) -> None:
    configure(widgets, webhook, timeoutSeconds=1)

    def slow(_: dict[str, Any]) -> dict[str, Any]:
        time.sleep(1.5)
        return {"allowed": True}

    webhook.answer = slow
    assert "context deadline exceeded" in refusal(lambda: widgets.create(a_widget())).message


def test_a_webhook_behind_a_service_is_reached_by_its_name(
    widgets: Client, simulated: TestCluster, webhook: Webhook
) -> None:
    service = {"namespace": "default", "name": "hooks", "path": "/check"}
    bundle = base64.b64encode(webhook.certificate).decode()
    configure(widgets, webhook, clientConfig={"service": service, "caBundle": bundle})
    assert 'service "hooks" not found' in refusal(lambda: widgets.create(a_widget())).message
    simulated.route_service("default", "hooks", webhook.url)
    widgets.create(a_widget())
    assert len(webhook.requests) == 1


def test_selectors_and_versions_decide_who_is_asked(widgets: Client, webhook: Webhook) -> None:
    configure(widgets, webhook, objectSelector={"matchLabels": {"checked": "yes"}})
    widgets.create(a_widget("free"))
    assert webhook.requests == []
    checked = a_widget("checked") | {"apiVersion": "test.kaito-ray.io/v1alpha1"}
    checked["metadata"]["labels"] = {"checked": "yes"}
    widgets.create(checked)
    assert [(one["kind"]["version"], one["requestKind"]["version"]) for one in webhook.requests] == [("v1", "v1alpha1")]
    assert webhook.requests[0]["object"]["apiVersion"] == "test.kaito-ray.io/v1"
