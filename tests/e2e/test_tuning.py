# SPDX-License-Identifier: Apache-2.0
"""Tuning with nothing simulated but the GPU: real Ray Train, TRL, peft and bitsandbytes on the tiny model.

The first test goes the whole way of a user, from a data set on a web server to the answer of the tuned model. Its
adapter is what the second one must come to although a worker is killed on the way.
"""

import asyncio
import json
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from aiohttp import web

from docker_registry import PASSWORD, USER, a_docker_registry, skopeo
from kaito_ray.artifacts.tensors import read_header
from kaito_ray.tuning_event import Failed, Finished, Started, Step, progress_of
from tune_rig import MODEL, PIRATE, a_job, a_tiny_tune_plan, a_training_config, chats, write_arguments
from waiting import free_port
from web import serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

WORKERS = 2
CONFIG = a_training_config(
    LoraConfig={"r": 16, "lora_alpha": 32},
    TrainingArguments={"max_steps": 90, "logging_steps": 5, "per_device_train_batch_size": 4, "max_seq_length": 256},
)
LOSS = 1.0
"""What the last loss lies below; the first is above 4."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """Configuration and weights of an adapter, as another tool has fetched them."""

    config: dict[str, Any]
    weights: Path


def manifest(url: str, image: str) -> str:
    workspace = {
        "apiVersion": "kaito.sh/v1beta1",
        "kind": "Workspace",
        "metadata": {"name": "pirate"},
        "resource": {"count": WORKERS, "labelSelector": {"matchLabels": {"app": "pirate"}}},
        "tuning": {
            "preset": {"name": MODEL},
            "method": "qlora",
            "config": "training",
            "input": {"urls": [url]},
            "output": {"image": image, "imagePushSecret": "registry"},
        },
    }
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "training"}, "data": CONFIG}
    login = {"auths": {image.partition("/")[0]: {"username": USER, "password": PASSWORD}}}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "registry"},
        "stringData": {".dockerconfigjson": json.dumps(login)},
    }
    return yaml.safe_dump_all([workspace, config, secret])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves its adapter for the second."""
    return tmp_path_factory.mktemp("tuned")


async def test_from_a_web_server_to_the_tuned_answer(shared: Path, tmp_path: Path) -> None:
    async def data(request: web.Request) -> web.Response:
        assert request.path == "/data/chats.jsonl"
        return web.Response(text=chats())

    file, port = tmp_path / "workspace.yaml", free_port()
    async with a_docker_registry(tmp_path / "registry", logins=True) as registry, serving(data) as base:
        image = registry.image("team/pirate:1")
        file.write_text(manifest(f"{base}/data/chats.jsonl?download=true", image))
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("kaito-ray")),
            *("run", str(file), "--port", str(port)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "KAITO_RAY_ALLOW_PRIVATE_URLS": "127.0.0.1", "XDG_CACHE_HOME": str(_cache(tmp_path))},
        )
        try:
            said = await _until_ready(process)
            losses = [float(found[1]) for found in re.finditer(r"step \d+/90 loss (\S+)", said)]
            assert losses[0] > 4
            assert losses[-1] < LOSS
            assert f"90 steps on {WORKERS} workers" in said

            login = f"{USER}:{PASSWORD}"
            shown = json.loads(
                await skopeo("inspect", "--raw", "--tls-verify=false", "--creds", login, f"docker://{image}")
            )
            assert shown["annotations"]["sh.kaito.model.name"] == MODEL
            assert float(shown["annotations"]["io.kaito-ray.final-loss"]) == pytest.approx(losses[-1], rel=0.01)
            target = f"oci:{tmp_path / 'pulled'}:1"
            await skopeo("copy", "--src-tls-verify=false", "--src-creds", login, f"docker://{image}", target)
            _unpack(tmp_path / "pulled", shown, shared)
            assert {path.name for path in (shared / "data").iterdir()} == {
                "adapter_config.json",
                "adapter_model.safetensors",
            }

            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                tuned = [await _ask(client, question) for question, _ in PIRATE]
                untuned = [await _ask(client, question, model=MODEL) for question, _ in PIRATE]
                served = (await client.get("/adapters")).json()
            assert tuned == [answer for _, answer in PIRATE]
            assert not set(untuned) & set(tuned)
            assert [(one["name"], one["source"]["image"]) for one in served] == [("pirate", image)]
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
            await process.wait()
        assert process.returncode == 0


async def test_a_killed_worker_costs_only_the_steps_since_the_last_checkpoint(shared: Path, tmp_path: Path) -> None:
    if not (shared / "data").is_dir():
        pytest.skip("the adapter to compare with comes from the test before this one")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "chats.jsonl").write_text(chats())
    made = a_tiny_tune_plan(
        CONFIG,
        workers=WORKERS,
        input={"volumeSource": {"hostPath": {"path": str(tmp_path / "data")}}},
        output={"volumeSource": {"hostPath": {"path": str(tmp_path / "output")}}},
    )
    arguments = write_arguments(made, tmp_path, tmp_path / "data", checkpoint_s=0.5)
    killed = 0
    async with a_job(arguments) as job:
        async for event in job.follow():
            if isinstance(event, Step) and event.step >= 45 and not killed:
                assert not (tmp_path / "output" / "adapter_config.json").exists()
                worker = job.workers()[-1]
                worker.kill()
                killed = worker.pid
        assert await job.process.wait() == 0, job.log.read_text()
    assert killed
    starts = [event for event in job.events if isinstance(event, Started)]
    assert [start.attempt for start in starts] == [1, 2]
    assert 0 < starts[1].resumed_from <= starts[1].total_steps
    finished = progress_of(job.events).finished
    assert finished is not None
    metrics = [json.loads(line) for line in (tmp_path / "output" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(5, 91, 5))
    assert (tmp_path / "output" / "loss.png").read_bytes()[1:4] == b"PNG"
    assert _largest_difference(shared / "data", tmp_path / "output") < 1e-4


async def test_a_loss_that_runs_away_ends_it_without_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "chats.jsonl").write_text(chats())
    config = a_training_config(TrainingArguments={"learning_rate": 1e3, "max_steps": 500, "logging_steps": 1})
    volumes = {"volumeSource": {"hostPath": {"path": str(tmp_path / "data")}}}
    made = a_tiny_tune_plan(config, input=volumes, output=volumes)
    arguments = write_arguments(made, tmp_path, tmp_path / "data")
    async with a_job(arguments) as job:
        events = await job.end()
        assert job.process.returncode == 1
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert failed.reason in {"LossDiverged", "LossNotFinite"}
    assert "lower the learning rate" in failed.message
    assert max(event.step for event in events if isinstance(event, Step)) < 50
    assert not any(isinstance(event, Finished) for event in events)
    assert list((tmp_path / "output").glob("adapter*")) == []
    async with a_job(arguments) as again:  # as KubeRay would
        events = await again.end()
    assert [event for event in events if isinstance(event, Started)] == []
    assert events[-1] == failed


async def test_a_layer_that_the_model_has_not_is_named_with_those_it_has(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "chats.jsonl").write_text(chats())
    volumes = {"volumeSource": {"hostPath": {"path": str(tmp_path / "data")}}}
    made = a_tiny_tune_plan(a_training_config(LoraConfig={"target_modules": ["q_proj"]}), input=volumes, output=volumes)
    async with a_job(write_arguments(made, tmp_path, tmp_path / "data")) as job:
        events = await job.end()
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert failed.message == (
        "LoraConfig.target_modules names q_proj; the linear layers of tiny-phi-3 are down_proj, gate_up_proj, o_proj,"
        " qkv_proj"
    )


async def _until_ready(process: asyncio.subprocess.Process) -> str:
    """What the run says until it serves."""
    assert process.stderr is not None
    said = ""
    async for line in process.stderr:
        said += line.decode()
        if " ready " in line.decode():
            return said
    raise AssertionError(said)


async def _ask(client: httpx.AsyncClient, question: str, **more: Any) -> str:
    body = {
        "messages": [{"role": "user", "content": question}],
        "generate_kwargs": {"do_sample": False},
        **more,
    }
    answer = await client.post("/chat", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["Result"]).strip()


def _cache(folder: Path) -> Path:
    """A cache of this test alone that has the built-in model already."""
    from kaito_ray.tiny_model import cache_folder, model_path

    model_path()
    cache = folder / "cache"
    (cache / "kaito-ray").mkdir(parents=True)
    (cache / "kaito-ray" / "models").symlink_to(cache_folder())
    return cache


def _unpack(oci: Path, shown: dict[str, Any], target: Path) -> None:
    import tarfile

    [layer] = shown["layers"]
    with tarfile.open(oci / "blobs" / "sha256" / layer["digest"].partition(":")[2]) as tar:
        tar.extractall(target, filter="data")


def _largest_difference(one: Path, other: Path) -> float:
    from safetensors.numpy import load_file

    name = "adapter_model.safetensors"
    assert read_header(one / name).keys() == read_header(other / name).keys()
    first, second = load_file(one / name), load_file(other / name)
    return max(float(abs(first[key] - second[key]).max()) for key in first)
