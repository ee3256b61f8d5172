# SPDX-License-Identifier: Apache-2.0
"""The certificates of the admission webhook, kept in a Secret that all replicas share and known to the API server.

Started by operator/main.py. The first replica makes them; the leader renews them and writes the authority into the
ValidatingWebhookConfiguration of the chart. Every replica serves what the Secret says, from files that kopf reads
again when they change. With a folder given (cert-manager's Secret, mounted) none of this happens.
"""

import asyncio
import base64
import logging
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from kaito_ray import names
from kaito_ray.certificate import Certificates, make_certificates, renewed
from kaito_ray.cluster import Cluster, Conflict, KubeObject, NotFound
from kaito_ray.errors import ClusterUnavailable, KaitoRayError, LeaseLost
from kaito_ray.kinds import SECRET, VALIDATING_WEBHOOK
from kaito_ray.settings import Settings

logger = logging.getLogger(__name__)

_SECRET = "kaito-ray-webhook"  # noqa: S105
_FILES = {"ca.crt": "authorities", "ca.key": "authority_key", "tls.crt": "certificate", "tls.key": "key"}
_LOOK_S = 60
_RETRY_S = 2.0


class WebhookCertificates:
    """Certificates in files; `certificate` and `key` are what the webhook serves with."""

    def __init__(self, cluster: Cluster, namespace: str, settings: Settings, leads: Callable[[], bool]) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._settings = settings
        self._leads = leads
        self._given = settings.webhook_cert_dir
        self._folder = self._given or Path(tempfile.mkdtemp(prefix="kaito-ray-webhook-"))
        self._hosts = (f"{settings.webhook_service}.{namespace}.svc", "localhost", "127.0.0.1")

    @property
    def certificate(self) -> Path:
        """The file with the server's certificate."""
        return self._folder / "tls.crt"

    @property
    def key(self) -> Path:
        """The file with the server's key."""
        return self._folder / "tls.key"

    async def prepare(self, unfenced: Cluster) -> None:
        """Have the files there, before anybody leads: whoever makes the Secret first wins."""
        if self._given:
            return
        while True:
            try:
                self._write(await self._load() or await self._make(unfenced))
            except ClusterUnavailable as error:
                logger.warning("the webhook's certificates cannot be read yet: %s", error)
                await asyncio.sleep(_RETRY_S)
            except KaitoRayError as error:
                # Reconciling works without the webhook, so it must not depend on it.
                logger.warning("the webhook's certificates cannot be kept in a Secret: %s", error)
                self._write(make_certificates(self._hosts, datetime.now(UTC)))
                return
            else:
                return

    async def keep(self) -> None:
        """Follow the Secret, renew it in time and tell the API server, for ever."""
        while not self._given:
            try:
                current = await self._load()
                if current is not None:
                    if self._leads():
                        current = await self._renew(current)
                        await self._introduce(current)
                    self._write(current)
            except LeaseLost:
                logger.debug("another replica looks after the webhook's certificates")
            except KaitoRayError as error:
                logger.warning("the webhook's certificates cannot be looked after now: %s", error)
            await self._pause()

    async def _pause(self) -> None:
        """Until it is time to look again, or somebody else leads."""
        led = self._leads()
        for _ in range(_LOOK_S):
            await asyncio.sleep(1)
            if self._leads() != led:
                return

    async def _load(self) -> Certificates | None:
        try:
            secret = await self._cluster.get(SECRET, self._namespace, _SECRET)
        except NotFound:
            return None
        data = secret.get("data") or {}
        return Certificates(**{field: base64.b64decode(data[file]).decode() for file, field in _FILES.items()})

    async def _make(self, unfenced: Cluster) -> Certificates:
        made = make_certificates(self._hosts, datetime.now(UTC))
        try:
            await unfenced.create(SECRET, self._secret(made))
        except Conflict:
            return await self._load() or made
        logger.info("made the webhook's certificates")
        return made

    async def _renew(self, current: Certificates) -> Certificates:
        fresh = renewed(current, self._hosts, datetime.now(UTC))
        if fresh != current:
            await self._cluster.patch(SECRET, self._namespace, _SECRET, {"data": self._secret(fresh)["data"]})
            logger.info("renewed the webhook's certificates")
        return fresh

    async def _introduce(self, current: Certificates) -> None:
        """Write the authority into the webhook configuration, where there is one."""
        name = self._settings.webhook_configuration
        if not name:
            return
        try:
            live = await self._cluster.get(VALIDATING_WEBHOOK, None, name)
        except NotFound:
            return
        bundle = base64.b64encode(current.authorities.encode()).decode()
        hooks = live.get("webhooks") or []
        if all(hook["clientConfig"].get("caBundle") == bundle for hook in hooks):
            return
        wanted = [{**hook, "clientConfig": {**hook["clientConfig"], "caBundle": bundle}} for hook in hooks]
        patch = {"metadata": {"resourceVersion": live["metadata"]["resourceVersion"]}, "webhooks": wanted}
        await self._cluster.patch(VALIDATING_WEBHOOK, None, name, patch)
        logger.info("told the API server whom to trust in %s", name)

    def _secret(self, certificates: Certificates) -> KubeObject:
        data = {file: getattr(certificates, field) for file, field in _FILES.items()}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            # Without our managed-by label: that one means an object of some Workspace.
            "metadata": {"name": _SECRET, "namespace": self._namespace, "labels": {"app": names.MANAGED_BY}},
            "type": "Opaque",
            "data": {file: base64.b64encode(text.encode()).decode() for file, text in data.items()},
        }

    def _write(self, certificates: Certificates) -> None:
        for file, text in (("tls.key", certificates.key), ("tls.crt", certificates.certificate)):
            path = self._folder / file
            if not path.exists() or path.read_text() != text:
                path.touch(mode=0o600)
                path.write_text(text)
