# SPDX-License-Identifier: Apache-2.0
"""Tuning with nothing simulated but the GPU: real Ray Train, TRL, peft and bitsandbytes on the tiny model.

The first test goes the whole way of a user, from a data set on a web server to the answer of the tuned model, with a
registry that is away when the adapter is finished. Its adapter is what the second one must come to although a worker,
all of Ray's workers for want of memory, and then the whole Ray cluster are killed on the way.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from aiohttp import web

from docker_registry import PASSWORD, USER, a_docker_registry, skopeo
from kaito_ray.artifacts.tensors import read_header
from kaito_ray.plan import ModelSource, TunePlan
from kaito_ray.tiny_model import cache_folder, model_path
from kaito_ray.tuning_event import Failed, Finished, Started, Step, progress_of
from tune_rig import (
    MODEL,
    PIRATE,
    Job,
    a_checkpoint,
    a_job,
    a_tiny_tune_plan,
    a_training_config,
    chats,
    write_arguments,
)
from waiting import free_port
from web import serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

WORKERS, STEPS = 2, 120
CONFIG = a_training_config(
    LoraConfig={"r": 16, "lora_alpha": 32},
    TrainingArguments={"max_steps": STEPS, "logging_steps": 5, "per_device_train_batch_size": 4, "max_seq_length": 256},
)
ROOM = 6 * 2**30
"""What the machine's memory use may rise by before Ray's monitor kills workers; the job takes about half of it."""
LOSS = 1.0
"""What the last loss lies below; the first is above 4."""
LARGE_MODEL = """
import torch
from transformers import Phi3ForCausalLM


class Large(Phi3ForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(allocate)


def allocate(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
"""
TOO_SMALL = (
    "the GPU's memory is too small for this training; lower max_length or per_device_train_batch_size in"
    " TrainingArguments, or take weights of 4 bits or a larger size"
)
GAUGES = r'ray_kaito_ray_tuning_loss\{.*namespace="default".*workspace="pirate".*\} \d'
"""What Prometheus finds at one of the ports of the Ray cluster."""


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
    """Where the first test leaves its adapter for the second, which makes it itself when it runs alone."""
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
            said = await _until(process, rf" train +step 5/{STEPS} ")
            await registry.stop()
            said += await _until(process, "the adapter is kept and pushed when the registry answers")
            await registry.start()
            said += await _until(process, " ready ")
            losses = [float(found[1]) for found in re.finditer(rf"step \d+/{STEPS} loss (\S+)", said)]
            assert losses[0] > 4
            assert losses[-1] < LOSS
            assert f"{STEPS} steps on {WORKERS} workers" in said

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


@pytest.mark.timeout(800)
async def test_losing_workers_and_then_the_cluster_costs_only_some_steps(shared: Path, tmp_path: Path) -> None:
    memory = psutil.virtual_memory()
    if memory.available < ROOM + 2**30:
        pytest.skip(f"needs {ROOM / 2**30 + 1:.0f} GiB of free memory")
    reference = await an_uninterrupted_adapter(shared)
    data, output = a_folder_of_chats(tmp_path), tmp_path / "output"
    arguments = write_arguments(a_plan(data, output), tmp_path, data, checkpoint_s=0.25)
    threshold = (memory.total - memory.available + ROOM) / memory.total
    variables = {
        "RAY_memory_usage_threshold": f"{threshold:.4f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    async with a_job(arguments, **variables) as first:
        following = asyncio.create_task(first.end())
        await a_checkpoint(first, output, attempt=1)
        await _use_up_memory(first, int(threshold * memory.total))
        await a_checkpoint(first, output, attempt=2)
        first.workers()[-1].kill()
        await a_checkpoint(first, output, attempt=3)
        # And now everything of it is killed: what a pod on a lost node leaves.
    await following
    assert not (output / "adapter_config.json").exists()
    seen, seldom = "", write_arguments(a_plan(data, output), tmp_path, data, checkpoint_s=5.0)
    async with a_job(seldom, RAY_metrics_report_interval_ms="500") as second:
        async for event in second.follow():
            if isinstance(event, Step) and not re.search(GAUGES, seen):
                seen = await _metrics(second)
        await second.process.wait()
        assert second.process.returncode == 0, second.log.read_text()
    assert re.search(GAUGES, seen)
    starts = [event for event in (*first.events, *second.events) if isinstance(event, Started)]
    assert [start.attempt for start in starts] == [1, 2, 3, 4]
    resumed = [start.resumed_from for start in starts]
    assert resumed[0] == 0
    assert resumed == sorted(set(resumed))
    assert progress_of(second.events).finished is not None
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(5, STEPS + 1, 5))
    assert (output / "loss.png").read_bytes()[1:4] == b"PNG"
    assert _largest_difference(reference, output) < 1e-4


@pytest.mark.parametrize("case", ["a learning rate of 1000", "weights that are no numbers"])
async def test_a_loss_that_is_lost_ends_it_without_an_adapter(tmp_path: Path, case: str) -> None:
    data, output = a_folder_of_chats(tmp_path), tmp_path / "output"
    rate = 1e3 if "rate" in case else 1e-4
    config = a_training_config(TrainingArguments={"learning_rate": rate, "max_steps": 500, "logging_steps": 1})
    made = a_tiny_tune_plan(config, input=a_volume(data), output=a_volume(output))
    if "weights" in case:
        made = replace(made, source=ModelSource("path", str(_broken_model(tmp_path / "model"))))
    arguments = write_arguments(made, tmp_path, data)
    async with a_job(arguments) as job:
        events = await job.end()
        assert job.process.returncode == 1
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert failed.final
    assert failed.reason in ({"LossDiverged", "LossNotFinite"} if "rate" in case else {"LossNotFinite"})
    assert "lower the learning rate" in failed.message
    assert max(event.step for event in events if isinstance(event, Step)) < 50
    assert not any(isinstance(event, Finished) for event in events)
    assert [path.name for path in output.iterdir() if path.name != ".kaito-ray"] == []
    async with a_job(arguments) as again:  # as KubeRay would
        events = await again.end()
    assert [event for event in events if isinstance(event, Started)] == []
    assert events[-1] == failed


async def test_a_gpu_that_is_too_small_ends_it_with_what_to_do(tmp_path: Path) -> None:
    """The GPU's part is played by the model, which says on the first batch what CUDA says."""
    data, model = a_folder_of_chats(tmp_path), tmp_path / "model"
    shutil.copytree(model_path(), model)
    (model / "modeling_large.py").write_text(LARGE_MODEL)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "modeling_large.Large"}})
    )
    made = a_tiny_tune_plan(input=a_volume(data), output=a_volume(tmp_path / "output"))
    arguments = write_arguments(replace(made, source=ModelSource("path", str(model))), tmp_path, data)
    document = json.loads(arguments.read_text())
    document["model"]["trust_remote_code"] = True
    arguments.write_text(json.dumps(document))
    async with a_job(arguments, HF_MODULES_CACHE=str(tmp_path / "modules")) as job:
        events = await job.end()
        assert job.process.returncode == 1
    assert events[-1] == Failed("OutOfMemory", TOO_SMALL, final=True), job.log.read_text()
    assert sum(isinstance(event, Started) for event in events) == 1, "what would only come again is not tried again"
    assert [path.name for path in (tmp_path / "output").iterdir()] == [".kaito-ray"]


async def test_memory_that_is_always_short_ends_it_with_what_to_do(tmp_path: Path) -> None:
    data = a_folder_of_chats(tmp_path)
    made = a_tiny_tune_plan(input=a_volume(data), output=a_volume(tmp_path / "output"))
    async with a_job(write_arguments(made, tmp_path, data), RAY_memory_usage_threshold="0.01") as job:
        *_, failed = await job.end()
    assert isinstance(failed, Failed)
    # Another cluster may have more room, so this may be tried again.
    assert (failed.reason, failed.final) == ("NodeOutOfMemory", False)
    assert re.fullmatch(
        r"Ray ended the training because memory was short \(\S+ GB of \S+ GB were in use\); lower"
        " per_device_train_batch_size or max_length in TrainingArguments, or take a larger size",
        failed.message,
    )


def a_folder_of_chats(folder: Path) -> Path:
    data = folder / "data"
    data.mkdir()
    (data / "chats.jsonl").write_text(chats())
    return data


def a_volume(folder: Path) -> dict[str, Any]:
    return {"volumeSource": {"hostPath": {"path": str(folder)}}}


def a_plan(data: Path, output: Path) -> TunePlan:
    """The tuning of the first test, from a folder into a folder."""
    return a_tiny_tune_plan(CONFIG, workers=WORKERS, input=a_volume(data), output=a_volume(output))


async def an_uninterrupted_adapter(shared: Path) -> Path:
    """The adapter of the first test, or one made here where that test did not run."""
    if not (shared / "data").is_dir():
        alone = shared / "alone"
        alone.mkdir()
        data = a_folder_of_chats(alone)
        async with a_job(write_arguments(a_plan(data, alone / "output"), alone, data)) as job:
            await job.end()
            assert job.process.returncode == 0, job.log.read_text()
        (alone / "output").rename(shared / "data")
    return shared / "data"


async def _use_up_memory(job: Job, limit: int) -> None:
    """Hold so much memory that Ray's monitor takes what the job's workers have, and let go once it has.

    They stand still meanwhile, or they would be done before the memory is.
    """
    workers, held = job.workers(), []
    for worker in workers:
        worker.suspend()
    while all(_lives(worker) for worker in workers):
        memory = psutil.virtual_memory()
        if (short := limit + 2**25 - (memory.total - memory.available)) > 0:
            held.append(b"x" * min(short, 2**29))
        await asyncio.sleep(0.05)
    for worker in filter(_lives, workers):
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


async def _until(process: asyncio.subprocess.Process, pattern: str) -> str:
    """What the run says up to a line with `pattern`."""
    assert process.stderr is not None
    said = ""
    async for line in process.stderr:
        said += line.decode()
        if re.search(pattern, line.decode()):
            return said
    raise AssertionError(said)


async def _metrics(job: Job) -> str:
    """What the metrics ports of the job's Ray say."""
    said = ""
    async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
        for process in psutil.Process(job.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                for socket in process.net_connections("tcp"):
                    if socket.status == psutil.CONN_LISTEN and "ray::DashboardAgent" in process.cmdline()[0]:
                        with contextlib.suppress(httpx.HTTPError):
                            said += (await client.get(f"http://127.0.0.1:{socket.laddr.port}/metrics")).text
    return said


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


def _broken_model(folder: Path) -> Path:
    """The tiny model with a weight that is not a number."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model_path(), folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = np.full_like(weights["model.norm.weight"], np.nan)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
