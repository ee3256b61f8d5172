# SPDX-License-Identifier: Apache-2.0
"""A finished adapter to a volume or a registry, whatever state that is in."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter_files import BASE_NAME, adapter_tensors, an_adapter
from docker_registry import PASSWORD, USER, DockerRegistry, a_docker_registry, require, skopeo
from kaito_ray.errors import AdapterRefused, ArtifactRefused
from kaito_ray.tuning_event import Event, Finished, Started, Step, Waiting
from tune_jobs.arguments import Arguments
from tune_jobs.data import Prepared
from tune_jobs.home import Home, Run
from tune_jobs.publish import check_push, publish

DATA = Prepared(Path("rows.parquet"), 6, "sha256:data", 129, "messages (messages)", (), (), ())


def an_argument_set(folder: Path, image: str = "", *, password: str | None = PASSWORD) -> Arguments:
    (folder / "output").mkdir(exist_ok=True)
    (folder / "auth").mkdir(exist_ok=True)
    if password is not None:
        login = {"auths": {image.partition("/")[0]: {"username": USER, "password": password}}}
        (folder / "auth" / "push.json").write_text(json.dumps(login))
    return Arguments.model_validate(
        {
            "name": "job",
            "workspace": "pirate",
            "method": "qlora",
            "workers": 1,
            "use_gpu": False,
            "model": {"name": BASE_NAME, "kind": "path", "reference": "/nowhere", "revision": "abc"},
            "lora": {"r": 8},
            "training": {"learning_rate": 1e-4},
            "data": {"source": {"path": "/nowhere"}},
            "output": {"folder": folder / "output", "image": image},
            "folders": {"cache": folder / "cache", "push_auth": folder / "auth"},
        }
    )


def a_run(arguments: Arguments, **adapter: Any) -> Run:
    """A training that has just ended."""
    run = Home.of(arguments).run("fingerprint")
    an_adapter(run.adapter, **adapter)
    (run.folder / "checkpoint-10").mkdir()
    events: list[Event] = [
        Started(1, 1, 20),
        Step(10, 20, 0.5, "2026-11-21T03:26:26Z", loss=3.0, learning_rate=1e-4),
        Step(15, 20, 0.7, "2026-11-21T03:26:27Z", loss=9.0),
        Started(2, 1, 20, resumed_from=10),
        Step(20, 20, 1.0, "2026-11-21T03:26:36Z", loss=1.25, learning_rate=1e-5),
    ]
    run.events.write_text("".join(f"{event.line()}\n" for event in events))
    return run


def run_publish(arguments: Arguments, run: Run) -> tuple[Finished, list[Event]]:
    said: list[Event] = []
    return publish(arguments, DATA, run, (), said.append), said


def test_a_volume_gets_the_adapter_its_figures_and_its_curve(tmp_path: Path) -> None:
    arguments = an_argument_set(tmp_path)
    run = a_run(arguments)
    finished, _ = run_publish(arguments, run)
    output = arguments.output.folder
    assert {path.name for path in output.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "loss.png", "tuning.json", ".kaito-ray")
    }
    assert (finished.path, finished.image, finished.loss, finished.steps) == (str(output), "", 1.25, 20)
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [10, 20]  # step 15 was done again
    record = json.loads((output / "tuning.json").read_text())
    assert (record["baseModel"], record["baseRevision"], record["dataDigest"]) == (BASE_NAME, "abc", "sha256:data")
    assert not (run.folder / "checkpoint-10").exists()
    assert run_publish(arguments, run)[0].digest == finished.digest


async def test_an_image_in_kaitos_layout(tmp_path: Path) -> None:
    async with a_docker_registry(tmp_path / "registry", logins=True) as registry:
        image = registry.image("team/pirate:1")
        arguments = an_argument_set(tmp_path, image)
        finished, _ = await asyncio.to_thread(run_publish, arguments, a_run(arguments))
        manifest = await _manifest(image)
        assert manifest["annotations"]["sh.kaito.model.name"] == BASE_NAME.rpartition("/")[2]
        assert manifest["annotations"]["io.kaito-ray.base-revision"] == "abc"
        assert manifest["annotations"]["io.kaito-ray.data-digest"] == "sha256:data"
        assert manifest["annotations"]["io.kaito-ray.final-loss"] == "1.25"
        assert json.loads(manifest["annotations"]["io.kaito-ray.hyper-parameters"])["lora"] == {"r": 8}
        assert [layer["mediaType"] for layer in manifest["layers"]] == ["application/vnd.oci.image.layer.v1.tar+gzip"]
        digest = await skopeo(
            *("inspect", "--tls-verify=false", "--creds", f"{USER}:{PASSWORD}", "--format", "{{.Digest}}"),
            f"docker://{image}",
        )
        assert digest.strip() == finished.digest


async def test_a_registry_that_is_down_gets_the_adapter_when_it_returns(tmp_path: Path) -> None:
    require("docker-registry")
    registry = DockerRegistry(tmp_path / "registry")
    arguments = an_argument_set(tmp_path, registry.image("team/pirate:1"))
    run = a_run(arguments)
    said: list[Event] = []
    waiting = asyncio.Event()
    loop = asyncio.get_running_loop()

    def say(event: Event) -> None:
        said.append(event)
        loop.call_soon_threadsafe(waiting.set)

    check_before = asyncio.to_thread(check_push, arguments, (), say)
    await check_before
    assert isinstance(said[0], Waiting)
    waiting.clear()
    publishing = asyncio.create_task(asyncio.to_thread(publish, arguments, DATA, run, (), say))
    await asyncio.wait_for(waiting.wait(), 20)
    assert isinstance(said[-1], Waiting)
    assert "the adapter is kept" in said[-1].message
    assert (run.adapter / "adapter_model.safetensors").exists()
    try:
        await registry.start()
        finished = await asyncio.wait_for(publishing, 40)
    finally:
        await registry.stop()
    assert finished.image == registry.image("team/pirate:1")
    assert finished.digest.startswith("sha256:")


@pytest.mark.parametrize("password", ["wrong", None])
async def test_a_wrong_secret_is_found_before_training(tmp_path: Path, password: str | None) -> None:
    async with a_docker_registry(tmp_path / "registry", logins=True) as registry:
        arguments = an_argument_set(tmp_path, registry.image("team/pirate:1"), password=password)
        with pytest.raises(ArtifactRefused) as caught:
            await asyncio.to_thread(check_push, arguments, (), print)
        assert caught.value.reason == "Unauthorized"
        assert "wrong" not in str(caught.value)
        right = an_argument_set(tmp_path, registry.image("team/pirate:1"))
        await asyncio.to_thread(check_push, right, (), print)


def _without_effect() -> dict[str, Any]:
    tensors = adapter_tensors()
    return {name: np.zeros_like(value) if "lora_B" in name else value for name, value in tensors.items()}


def _not_a_number() -> dict[str, Any]:
    return {name: np.full_like(value, np.nan) for name, value in adapter_tensors().items()}


@pytest.mark.parametrize(
    ("tensors", "reason"), [(_without_effect(), "ChangesNothing"), (_not_a_number(), "CorruptWeights")]
)
def test_an_adapter_that_is_good_for_nothing_is_not_published(
    tmp_path: Path, tensors: dict[str, Any], reason: str
) -> None:
    arguments = an_argument_set(tmp_path)
    run = a_run(arguments, tensors=tensors)
    with pytest.raises(AdapterRefused) as caught:
        run_publish(arguments, run)
    assert caught.value.reason == reason
    assert not (arguments.output.folder / "adapter_config.json").exists()


async def _manifest(image: str) -> dict[str, Any]:
    text = await skopeo("inspect", "--raw", "--tls-verify=false", "--creds", f"{USER}:{PASSWORD}", f"docker://{image}")
    manifest: dict[str, Any] = json.loads(text)
    return manifest
