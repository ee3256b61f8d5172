# SPDX-License-Identifier: Apache-2.0
"""Adapters come and go on two replicas of a real engine behind real Ray Serve, by the Serve config alone."""

import asyncio
import contextlib
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from aiohttp import web
from safetensors.numpy import load_file, save_file

from adapter_files import adapter_for
from cluster.client import Client
from docker_registry import a_docker_registry
from kaito_ray.artifacts.limits import ADAPTER
from kaito_ray.artifacts.push import pack_adapter, push_image
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.reference import Reference
from kaito_ray.artifacts.registry import Registry
from kaito_ray.plan import AdapterPlan
from kaito_ray.tiny_model import model_path
from operator_rig import running_operator
from serve_rig import BASE, ServeRig, a_serve_rig
from waiting import until
from web import serving
from workspace_rig import a_serving, condition, get, simulated_cluster, wait_for, wait_until_ready

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

WAIT_S = 180
TWO_GPUS = "Standard_NC48ads_A100_v4"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeRig]:
    with a_serve_rig(tmp_path_factory.mktemp("serve"), replicas=2) as running:
        assert len(running.replica_urls()) == 2
        yield running


def on_volume(name: str, folder: Path, strength: float = 1.0) -> AdapterPlan:
    return AdapterPlan(name, {"path": str(folder)}, strength)


def deploy(rig: ServeRig, *adapters: AdapterPlan) -> None:
    """Ask for the adapters and wait until no replica is still busy with one."""
    rig.deploy(adapters)
    wanted = {adapter.name for adapter in adapters}

    def settled() -> bool:
        return all(
            states.keys() == wanted and all(state["state"] != "Loading" for state in states.values())
            for states in rig.states()
        )

    until(settled, WAIT_S, lambda: str(rig.states()))


def texts(rig: ServeRig, model: str) -> set[str]:
    """What the replicas answer, each asked by itself."""
    answers = [rig.chat(model, url=url) for url in rig.replica_urls()]
    assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
    return {answer.json()["choices"][0]["text"] for answer in answers}


def test_add_replace_and_remove_on_every_replica(rig: ServeRig, tmp_path: Path) -> None:
    pids = rig.pids()
    one, two = (adapter_for(model_path(), tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two")))
    base = texts(rig, BASE)
    assert len(base) == 1
    assert rig.chat("a").status_code == 404

    deploy(rig, on_volume("a", one))
    with_one = texts(rig, "a")
    deploy(rig, on_volume("a", one), on_volume("b", two))
    with_two = texts(rig, "b")
    assert len(with_one) == len(with_two) == 1
    assert len(base | with_one | with_two) == 3
    assert texts(rig, BASE) == base

    models = {model["id"]: model["parent"] for model in rig.models()}
    assert models == {BASE: None, "a": BASE, "b": BASE}

    # Whichever replica is asked tells of all of them.
    ids = {replica["replica_id"] for replica in rig.replicas()}
    for url in rig.replica_urls():
        reports = rig.reports(url)
        assert reports.keys() == ids
        assert all({name: one["state"] for name, one in known.items()} == {"a": "Ready", "b": "Ready"}
                   for known in reports.values())  # fmt: skip

    deploy(rig, on_volume("a", two))  # replaced under its name, and the other one gone
    assert texts(rig, "a") == with_two
    assert [rig.chat("b", url=url).status_code for url in rig.replica_urls()] == [404, 404]

    deploy(rig, on_volume("a", one, 0.0))
    assert texts(rig, "a") == base  # at no strength there is no adapter
    deploy(rig)
    assert rig.chat("a").status_code == 404
    assert rig.pids() == pids


def test_what_is_asked_together_is_answered_as_if_alone(rig: ServeRig, tmp_path: Path) -> None:
    names = ("one", "two", "three")
    deploy(rig, *(on_volume(name, adapter_for(model_path(), tmp_path / name, seed=s)) for s, name in enumerate(names)))
    url = rig.replica_urls()[0]

    def ask(model: str) -> str:
        return str(rig.chat(model, url=url, tokens=24).json()["choices"][0]["text"])

    alone = {model: ask(model) for model in (BASE, *names)}
    assert len(set(alone.values())) == 4
    together = [BASE, *names, BASE, names[0]] * 4
    with ThreadPoolExecutor(len(together)) as clients:
        answers = list(clients.map(ask, together))
    wrong = [model for model, answer in zip(together, answers, strict=True) if answer != alone[model]]
    assert not wrong
    deploy(rig)


def test_strength_lies_between_nothing_and_everything(rig: ServeRig, tmp_path: Path) -> None:
    folder = adapter_for(model_path(), tmp_path / "one", seed=3)
    tensors = load_file(folder / WEIGHTS)
    halved = adapter_for(model_path(), tmp_path / "halved", seed=3)
    save_file({name: value * (0.5 if "lora_B" in name else 1) for name, value in tensors.items()}, halved / WEIGHTS)
    deploy(rig, on_volume("half", folder, 0.5), on_volume("halved", halved))
    assert texts(rig, "half") == texts(rig, "halved")
    deploy(rig)


def test_bad_ones_of_every_kind_while_the_base_answers(rig: ServeRig, tmp_path: Path) -> None:
    pids = rig.pids()
    stop, failures = threading.Event(), []

    def base_traffic() -> None:
        while not stop.is_set():
            answer = rig.chat(BASE, tokens=4)
            if answer.status_code != 200:
                failures.append(answer.text)

    def broken(name: str, change: Callable[[Path], None], **config: Any) -> AdapterPlan:
        folder = adapter_for(model_path(), tmp_path / name, seed=4, **config)
        change(folder)
        return on_volume(name, folder)

    def keep(_: Path) -> None:
        """Nothing but the configuration is wrong."""

    def truncate(folder: Path) -> None:
        os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)

    def make_pickle(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "adapter_model.bin").write_bytes(pickle.dumps({"x": 1}))

    def zero(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        save_file({name: value * ("lora_A" in name) for name, value in tensors.items()}, folder / WEIGHTS)

    def widen(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        wide = {name: np.repeat(value, 2, 1 if "lora_A" in name else 0) for name, value in tensors.items()}
        save_file({name: np.ascontiguousarray(value) for name, value in wide.items()}, folder / WEIGHTS)

    good = on_volume("good", adapter_for(model_path(), tmp_path / "good", seed=5))
    bad = [
        (broken("big", keep, rank=128), Reason.RANK_TOO_HIGH),
        (broken("dora", keep, use_dora=True), Reason.UNSUPPORTED_FEATURE),
        (broken("saves", keep, modules_to_save=["lm_head"]), Reason.UNSUPPORTED_FEATURE),
        (broken("empty", keep, target_modules=[]), Reason.INVALID_CONFIG),
        (broken("cut", truncate), Reason.CORRUPT_WEIGHTS),
        (broken("pickle", make_pickle), Reason.PICKLE),
        (broken("zero", zero), Reason.CHANGES_NOTHING),
        (broken("wide", widen), Reason.WRONG_BASE),
        (on_volume("missing", tmp_path / "nowhere"), Reason.PATH_NOT_FOUND),
        (AdapterPlan("metadata", {"urls": ["http://169.254.169.254/a.tar"]}), Reason.URL_REFUSED),
        (AdapterPlan("down", {"image": "127.0.0.1:1/team/adapter:1"}), Reason.CONNECTION_FAILED),
    ]
    expected = {plan.name: str(reason) for plan, reason in bad} | {"good": ""}
    with ThreadPoolExecutor(4) as clients:
        for _ in range(4):
            clients.submit(base_traffic)
        try:
            deploy(rig, good, *(plan for plan, _ in bad))
            for states in rig.states():
                assert {name: state["reason"] for name, state in states.items()} == expected
                assert all(bool(state["error"]) == (name != "good") for name, state in states.items())
            assert len(texts(rig, "good")) == 1
            assert {rig.chat(plan.name).status_code for plan, _ in bad} == {404}
        finally:
            stop.set()
    assert not failures
    assert rig.pids() == pids
    deploy(rig)


def test_a_slow_source_keeps_no_replica_from_its_work(rig: ServeRig) -> None:
    async def scenario() -> None:
        asked, over = asyncio.Event(), asyncio.Event()

        async def handler(_: web.Request) -> web.StreamResponse:
            asked.set()
            await over.wait()
            return web.Response(status=404)

        async with serving(handler) as url:
            rig.deploy([AdapterPlan("slow", {"urls": [f"{url}/adapter.tar"]})])
            await asyncio.wait_for(asked.wait(), WAIT_S)
            try:
                # Serve sends requests to running replicas only.
                await asyncio.to_thread(all_run_while_it_loads)
            finally:
                over.set()

    def all_run_while_it_loads() -> None:
        def loading() -> bool:
            states = [states.get("slow", {}).get("state") for states in rig.states()]
            return states == ["Loading"] * 2 and {one["state"] for one in rig.all_replicas()} == {"RUNNING"}

        until(loading, 10, lambda: f"{rig.states()} {rig.all_replicas()}")

    asyncio.run(scenario())
    deploy(rig)


def test_a_replica_that_is_replaced_answers_with_its_adapters_from_the_start(rig: ServeRig, tmp_path: Path) -> None:
    deploy(rig, on_volume("a", adapter_for(model_path(), tmp_path / "one", seed=9)))
    answer = texts(rig, "a")
    victim = min(rig.pids())
    os.kill(victim, signal.SIGKILL)
    statuses: set[int] = set()

    def replaced() -> bool:
        # The request that the dead one had may fail; one to a replica without the adapter would be a 404.
        with contextlib.suppress(httpx.HTTPError):
            statuses.add(rig.chat("a", tokens=2).status_code)
        return victim not in rig.pids() and len(rig.replica_urls()) == 2

    until(replaced, WAIT_S, lambda: str(rig.replicas()))
    assert 200 in statuses
    assert 404 not in statuses
    assert texts(rig, "a") == answer
    deploy(rig)


def test_replicas_come_and_go_under_traffic_and_none_answers_without_its_adapters(
    rig: ServeRig, tmp_path: Path
) -> None:
    adapters = [on_volume("a", adapter_for(model_path(), tmp_path / "one", seed=10))]
    deploy(rig, *adapters)
    [answer] = texts(rig, "a")
    stop, wrong = threading.Event(), []

    def traffic(model: str) -> None:
        while not stop.is_set():
            said = rig.chat(model)
            if said.status_code != 200 or (model == "a" and said.json()["choices"][0]["text"] != answer):
                wrong.append(said.text)

    def are_running(number: int) -> Callable[[], bool]:
        return lambda: len(rig.replicas()) == len(rig.all_replicas()) == number

    with ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(traffic, model) for model in (BASE, "a") * 2]
        try:
            rig.scale(3, adapters)
            until(are_running(3), WAIT_S, lambda: str(rig.replicas()))
            assert [states["a"]["state"] for states in rig.states()] == ["Ready"] * 3
            # A change meets all of them, the newest too.
            adapters.append(on_volume("b", adapter_for(model_path(), tmp_path / "two", seed=11)))
            rig.deploy(adapters)
            until(
                lambda: (
                    [{name: one["state"] for name, one in states.items()} for states in rig.states()]
                    == [{"a": "Ready", "b": "Ready"}] * 3
                ),
                WAIT_S,
                lambda: str(rig.states()),
            )
            rig.scale(2, adapters)
            until(are_running(2), WAIT_S, lambda: str(rig.replicas()))
        finally:
            stop.set()
        for one in asked:
            one.result()
    assert not wrong
    deploy(rig)


async def push(folder: Path, image: str, work: Path) -> str:
    config, layer = pack_adapter(folder, work)
    async with Registry(Reference.parse(image), ADAPTER) as client:
        return await push_image(client, config, [layer], {})


def test_images_of_a_real_registry(rig: ServeRig, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with a_docker_registry(tmp_path / "registry") as registry:
            image = registry.image("team/adapter:1.0")
            one, two = (
                adapter_for(model_path(), tmp_path / name, seed=seed) for seed, name in ((6, "one"), (7, "two"))
            )
            first = await push(one, image, tmp_path)
            await asyncio.to_thread(deploy, rig, AdapterPlan("a", {"image": image}))
            assert {states["a"]["digest"] for states in rig.states()} == {first}
            with_one = texts(rig, "a")
            second = await push(two, image, tmp_path)
            # The same tag is another image now; naming its digest brings it in.
            await asyncio.to_thread(deploy, rig, AdapterPlan("a", {"image": image, "digest": second}))
            assert {states["a"]["digest"] for states in rig.states()} == {second}
            assert texts(rig, "a") != with_one

    asyncio.run(scenario())
    deploy(rig)


def test_the_operator_tells_what_every_replica_has(rig: ServeRig, tmp_path: Path) -> None:
    """A Workspace of a test cluster whose replicas are these: an edit ends in its status, with what they found."""

    async def scenario() -> None:
        async with a_docker_registry(tmp_path / "registry") as registry:
            image, wrong = registry.image("team/adapter:1.0"), registry.image("team/adapter:big")
            digest = await push(adapter_for(model_path(), tmp_path / "one", seed=8), image, tmp_path)
            await push(adapter_for(model_path(), tmp_path / "big", seed=8, rank=128), wrong, tmp_path)
            await asyncio.to_thread(edit, image, wrong, digest)

    def edit(image: str, wrong: str, digest: str) -> None:
        pids = rig.pids()
        with (
            simulated_cluster(tmp_path) as cluster,
            running_operator(cluster.kubeconfig, tmp_path),
            kuberay(cluster.client, rig),
        ):
            client = cluster.client
            cluster.add_node("gpu-1", gpus=2, labels={"apps": "tiny"}, instance_type=TWO_GPUS)
            cluster.route_service("default", "tiny", rig.url)
            workspace = a_serving("tiny", "tiny", inference={"preset": {"name": BASE}})
            workspace["resource"]["instanceType"] = TWO_GPUS
            client.create(workspace)
            workspace = wait_until_ready(client, "tiny")
            client.patch(workspace, {"inference": {"adapters": [{"source": {"name": "a", "image": image}}]}})
            workspace = wait_for(client, "tiny", "AdaptersReady", timeout_s=WAIT_S)
            assert condition(workspace, "AdaptersReady")["message"] == "1 adapter is loaded on 2 replicas"
            [known] = workspace["status"]["adapters"]
            assert (known["digest"], known["rank"], known["loaded"], known["replicas"]) == (digest, 8, 2, 2)
            assert known["loadedAt"] == max(state["a"]["loaded_at"] for state in rig.states())
            assert len(texts(rig, "a")) == 1
            # One that is refused is named, and the other answers on.
            added = [{"source": {"name": "a", "image": image}}, {"source": {"name": "big", "image": wrong}}]
            client.patch(workspace, {"inference": {"adapters": added}})
            workspace = wait_for(client, "tiny", "AdaptersReady", "False", reason="RankTooHigh", timeout_s=WAIT_S)
            assert "128" in condition(workspace, "AdaptersReady")["message"]
            assert condition(workspace, "WorkspaceReady")["status"] == "True"
            assert len(texts(rig, "a")) == 1
            client.patch(workspace, {"inference": {"adapters": []}})
            client.wait(lambda: get(client, "tiny")["status"].get("adapters"), lambda left: left is None, WAIT_S)
            until(lambda: rig.chat("a").status_code == 404, WAIT_S)
        assert rig.pids() == pids

    asyncio.run(scenario())


@contextlib.contextmanager
def kuberay(client: Client, rig: ServeRig) -> Iterator[None]:
    """Sends what serveConfigV2 of the RayService asks for to Ray, as KubeRay does."""
    stop = threading.Event()

    def follow() -> None:
        known: Any = []
        while not stop.wait(0.2):
            service = client.find("ray.io/v1", "RayService", "tiny", "default")
            if service is None:
                continue
            (deployment,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["deployments"]
            wanted = deployment["user_config"]["adapters"]
            if wanted != known:
                rig.deploy([AdapterPlan(one["name"], one["source"], one["strength"]) for one in wanted])
                known = wanted

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
