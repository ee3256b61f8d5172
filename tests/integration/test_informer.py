# SPDX-License-Identifier: Apache-2.0
"""What the operator knows of objects that come and go, over an API server."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster.fixture import Cluster as TestedCluster
from cluster.resource import Object
from kaito_ray.cluster import Cluster, KubeObject, connect
from kaito_ray.informer import Informer, Key
from kaito_ray.kinds import SECRET

NAME = "registry"


class Secrets(Informer[KubeObject]):
    """The Secrets of a namespace; `seen` gets the Secret of the tests after each change, None when it is gone."""

    def __init__(self, api: Cluster, namespace: str) -> None:
        self.seen: asyncio.Queue[KubeObject | None] = asyncio.Queue()
        self.key = (namespace, NAME)
        super().__init__(api, SECRET, lambda found: found, self._tell, namespace=namespace)

    def _tell(self, key: Key, _: KubeObject | None, after: KubeObject | None) -> None:
        if key == self.key:
            self.seen.put_nowait(after)


@pytest.fixture
async def secrets(cluster: TestedCluster) -> AsyncIterator[Secrets]:
    api = Cluster(await connect({"KUBECONFIG": str(cluster.kubeconfig)}))
    secrets = Secrets(api, cluster.namespace)
    following = asyncio.create_task(secrets.run())
    await secrets.synced.wait()
    yield secrets
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await api.close()


@pytest.fixture
def document(cluster: TestedCluster) -> Object:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME, "namespace": cluster.namespace}}


async def test_an_answer_that_comes_after_its_object_is_gone_brings_nothing_back(
    cluster: TestedCluster, secrets: Secrets, document: Object
) -> None:
    written = await asyncio.to_thread(cluster.client.create, document)
    assert await secrets.seen.get() == written
    await asyncio.to_thread(cluster.client.delete, document)
    assert await secrets.seen.get() is None
    secrets.put(written)
    assert secrets.get(secrets.key) is None
    again = await asyncio.to_thread(cluster.client.create, document)
    assert await secrets.seen.get() == again


async def test_a_write_is_seen_before_the_watch_tells_of_it(
    cluster: TestedCluster, secrets: Secrets, document: Object
) -> None:
    # The watch has no turn in this loop between the answer and the look.
    written = cluster.client.create(document)
    assert secrets.get(secrets.key) is None
    secrets.put(written)
    assert secrets.get(secrets.key) == written
