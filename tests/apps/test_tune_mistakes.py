# SPDX-License-Identifier: Apache-2.0
"""What a tuning job finds out before workers train: it ends with the reason, starts no Ray and publishes nothing."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from kaito_ray import names
from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused
from kaito_ray.tuning_event import Data, Event, Failed, parse_events
from tune_jobs.arguments import Arguments
from tune_jobs.data import prepare
from tune_jobs.home import Home
from tune_jobs.qlora import main
from tune_rig import a_tiny_tune_plan, a_training_config, chats, write_arguments
from web import serving

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("default")]

LOCAL = ("127.0.0.1",)
UNFILLED = {
    "image": "ACR_REPO_HERE.azurecr.io/IMAGE_NAME_HERE:0.0.1",
    "imagePushSecret": "ACR_REGISTRY_SECRET_HERE",
}


@pytest.fixture(autouse=True)
def no_ray() -> Iterator[None]:
    """Nothing here gets as far as training."""
    import ray

    yield
    assert not ray.is_initialized()


def a_job_file(folder: Path, method: str = "qlora", **config: Any) -> Path:
    """A job with its data in `data` below the folder."""
    (folder / "data").mkdir(exist_ok=True)
    volumes = {name: {"volumeSource": {"hostPath": {"path": str(folder / name)}}} for name in ("data", "output")}
    made = a_tiny_tune_plan(a_training_config(**config), method=method, input=volumes["data"], output=volumes["output"])
    return write_arguments(made, folder, folder / "data")


def with_urls(folder: Path, *urls: str) -> Arguments:
    """The job with these URLs, as if they had got past admission."""
    arguments = Arguments.read(a_job_file(folder))
    return arguments.model_copy(update={"data": arguments.data.model_copy(update={"source": {"urls": list(urls)}})})


def told(file: Path, capsys: pytest.CaptureFixture[str]) -> list[Event]:
    """Run the job; it fails and leaves nothing behind that looks like a result."""
    assert main(file) == 1
    output = file.parent / "output"
    assert [path.name for path in output.iterdir() if path.name != ".kaito-ray"] == []
    return list(parse_events(capsys.readouterr().out))


MISTAKES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "no rows": ("", {}, "InvalidData", "chats.jsonl:1 is empty"),
    "bad JSON": (chats() + '{"messages": [}\n', {}, "InvalidData", "chats.jsonl:7 column 15: is no JSON"),
    "a wrong role": (chats().replace('"user"', '"usr"', 1), {}, "InvalidData", 'assistant, got "usr"'),
    "all too long": (
        chats(),
        {"TrainingArguments": {"max_length": 8}},
        "InvalidData",
        "every row is longer than max_length, 8 tokens",
    ),
    "a layer that the model has not": (
        chats(),
        {"LoraConfig": {"target_modules": ["q_proj", "o_proj"]}},
        "UnknownTargetModules",
        "names q_proj; the linear layers of tiny-phi-3 are down_proj, gate_up_proj, o_proj, qkv_proj",
    ),
    "chats instead of pairs": (
        chats(),
        {"method": "dpo"},
        "InvalidData",
        "chats.jsonl:1 is in the format messages (messages), and method dpo learns from pairs: the columns chosen and",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_the_job_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    rows, config, reason, message = MISTAKES[case]
    file = a_job_file(tmp_path, **config)
    (tmp_path / "data" / "chats.jsonl").write_text(rows)
    *before, last = told(file, capsys)
    assert isinstance(last, Failed)
    assert (last.reason, last.final) == (reason, True)
    assert message in last.message
    assert all(isinstance(event, Data) for event in before)


async def test_a_job_that_must_not_be_tried_again_stays_to_be_heard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator reads of it meanwhile, before KubeRay sees that the job failed."""
    monkeypatch.setenv(names.ENV_LINGER_S, "2")
    job, said = asyncio.create_task(asyncio.to_thread(main, a_job_file(tmp_path))), ""
    while not any(isinstance(event, Failed) for event in parse_events(said)):
        await asyncio.sleep(0.05)
        said += capsys.readouterr().out
    heard = time.monotonic()
    assert await job == 1
    assert time.monotonic() - heard > 1


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest", "http://2852039166/latest", "http://10.0.0.1/x"])
async def test_data_comes_from_no_private_address(tmp_path: Path, target: str) -> None:
    """Neither directly nor by a redirect from a host that is allowed."""

    async def redirect(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": target})

    async with serving(redirect) as allowed:
        for url in (target, f"{allowed}/chats.jsonl"):
            arguments = with_urls(tmp_path, url)
            with pytest.raises(ArtifactRefused) as caught:
                await asyncio.to_thread(prepare, arguments, Home.of(arguments), None, LOCAL)
            assert caught.value.reason == Reason.URL_REFUSED


async def test_two_urls_with_one_file_name_are_not_half_of_the_data(tmp_path: Path) -> None:
    async def data(_: web.Request) -> web.Response:
        return web.Response(text=chats())

    async with serving(data) as base:
        arguments = with_urls(tmp_path, f"{base}/first/chats.jsonl", f"{base}/second/chats.jsonl")
        with pytest.raises(ArtifactRefused, match=r"two of the urls have the file name chats\.jsonl"):
            await asyncio.to_thread(prepare, arguments, Home.of(arguments), None, LOCAL)


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = a_job_file(tmp_path)
    (tmp_path / "output" / ".kaito-ray").write_text("in the way of the folder")
    assert main(file) == 1
    *_, last = parse_events(capsys.readouterr().out)
    assert isinstance(last, Failed)
    assert last.reason == "OutputNotWritable"
    assert "tuning.output cannot be written: Not a directory, as user " in last.message


def test_words_of_an_example_are_named_before_anything_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = a_tiny_tune_plan(a_training_config(), output=UNFILLED)
    assert main(write_arguments(made, tmp_path, tmp_path / "data")) == 1
    [failed] = parse_events(capsys.readouterr().out)
    sentence = "tuning.output.image: replace ACR_REPO_HERE and IMAGE_NAME_HERE with your own"
    assert failed == Failed("PlaceholdersLeft", sentence, final=True)
