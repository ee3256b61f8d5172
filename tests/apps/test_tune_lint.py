# SPDX-License-Identifier: Apache-2.0
"""`python -m tune_jobs.lint` as the operator's pod runs it, on data of a real server, and what a kubelet finds then."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from kaito_ray import names
from kaito_ray.plan import ModelSource, ModelVolume
from kaito_ray.render.lint import lint_objects
from kaito_ray.settings import Settings
from kaito_ray.tuning_event import Data, Event, Failed, Waiting, parse_event
from tune_jobs.lint import fitted
from tune_rig import a_tiny_tune_plan, a_training_config, chats
from web import serving

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("default")]

KEPT_BYTES = 4096
LOCAL = Settings(allow_private_urls=("127.0.0.1",))
# The tokenizer of such a model is not at hand, which saves seconds where it does not matter.
IN_IMAGE = ModelSource("image", "registry.example/phi:1", volume=ModelVolume("pod"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a pod leaves."""

    code: int
    message: bytes
    stdout: str
    stderr: str

    @property
    def event(self) -> Event:
        """The event in the termination message."""
        event = parse_event(self.message.decode())
        assert event is not None, self.message
        return event


async def judged(folder: Path, url: str, *, settings: Settings = LOCAL, **changes: Any) -> Verdict:
    """The pod that is rendered for data at `url`, as a process with its folders on this machine."""
    config = changes.pop("config", None)
    plan = replace(a_tiny_tune_plan(config), input={"urls": [url]}, **changes)
    rendered, pod = lint_objects(plan, "pirate-job", 1, settings)
    [container] = pod["spec"]["containers"]
    arguments, message = folder / "arguments.json", folder / "message"
    text = rendered["data"][names.TUNE_ARGUMENTS]
    arguments.write_text(text.replace(names.CACHE_DIR, str(folder / "cache")))
    variables = {one["name"]: one["value"] for one in container["env"] if one["name"].startswith("KAITO_RAY")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *container["command"][1:-1],
        str(arguments),
        str(message),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **variables},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    left = message.read_bytes() if message.exists() else b""
    return Verdict(process.returncode, left, out.decode(), err.decode())


async def served(folder: Path, rows: str, **changes: Any) -> Verdict:
    async def data(_: web.Request) -> web.Response:
        return web.Response(text=rows)

    async with serving(data) as url:
        return await judged(folder, f"{url}/chats.jsonl?download=true", **changes)


async def test_good_data_is_described(tmp_path: Path) -> None:
    verdict = await served(tmp_path, chats())
    assert verdict.code == 0, verdict.stderr
    data = verdict.event
    assert isinstance(data, Data)
    assert (data.rows, data.format) == (6, "messages (messages)")
    assert f"{data.tokens:,} tokens; rows have" in data.summary[1]
    assert data.summary[-1].startswith("tokens a row: up to ")
    assert data.samples[1] == "user: What is a pod? | assistant: A pod is a barrel, and the containers are in it."
    assert parse_event(verdict.stdout) == data


async def test_without_the_tokenizer_lengths_are_guessed_and_refuse_nothing(tmp_path: Path) -> None:
    config = a_training_config(TrainingArguments={"max_length": 4})
    verdict = await served(tmp_path, chats(), source=IN_IMAGE, config=config)
    assert verdict.code == 0, verdict.stderr
    assert isinstance(verdict.event, Data)
    assert verdict.event.summary[1].startswith("about ")
    assert any("every row is longer than max_length, 4 tokens" in one for one in verdict.event.warnings)


MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no JSON": (chats() + '{"messages": [}\n', {}, "chats.jsonl:7 column 15: is no JSON"),
    "a wrong role": (
        chats().replace('"user"', '"usr"', 1),
        {},
        'chats.jsonl:1 messages: message 1 must have the role system, user or assistant, got "usr"',
    ),
    "all too long": (
        chats(),
        {"config": a_training_config(TrainingArguments={"max_length": 8})},
        "every row is longer than max_length, 8 tokens",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
async def test_a_mistake_has_file_line_and_column(tmp_path: Path, case: str) -> None:
    rows, changes, words = MISTAKES[case]
    verdict = await served(tmp_path, rows, **changes)
    assert verdict.code == 1
    failed = verdict.event
    assert isinstance(failed, Failed)
    assert failed.reason == "InvalidData"
    assert words in failed.message


async def test_more_mistakes_than_a_kubelet_keeps_are_cut_at_the_end(tmp_path: Path) -> None:
    text = "什么是吊舱?" * 60
    rows = "".join(json.dumps({"messages": [{"role": f"{text}{row}", "content": "a"}]}) + "\n" for row in range(30))
    verdict = await served(tmp_path, rows, source=IN_IMAGE)
    assert KEPT_BYTES - 16 < len(verdict.message) <= KEPT_BYTES
    assert isinstance(verdict.event, Failed)
    assert verdict.event.message.startswith("chats.jsonl:1 ")
    assert verdict.event.message.endswith(" ...")
    # Whoever reads the log has all of it.
    assert len(verdict.stdout.encode()) > KEPT_BYTES


async def test_a_server_that_has_no_such_file(tmp_path: Path) -> None:
    async def nothing(_: web.Request) -> web.Response:
        return web.Response(status=404)

    async with serving(nothing) as url:
        verdict = await judged(tmp_path, f"{url}/chats.jsonl", source=IN_IMAGE)
    assert isinstance(verdict.event, Failed)
    assert (verdict.code, verdict.event.reason) == (1, "NotFound")
    assert "does not have it (404)" in verdict.event.message


async def test_an_address_that_is_not_allowed_is_not_asked(tmp_path: Path) -> None:
    asked = []

    async def data(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(text=chats())

    async with serving(data) as url:
        verdict = await judged(tmp_path, f"{url}/chats.jsonl", settings=Settings(), source=IN_IMAGE)
    assert isinstance(verdict.event, Failed)
    assert verdict.event.reason == "UrlRefused"
    assert asked == []


async def test_a_server_that_is_away_may_come_back(tmp_path: Path) -> None:
    async def away(_: web.Request) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": "86400"})

    async with serving(away) as url:
        verdict = await judged(tmp_path, f"{url}/chats.jsonl", source=IN_IMAGE)
    assert isinstance(verdict.event, Waiting)
    assert (verdict.code, verdict.event.reason) == (1, "ServerError")


async def test_data_that_is_too_large_for_this_place_is_not_judged(tmp_path: Path) -> None:
    stat = os.statvfs(tmp_path)
    size = stat.f_frsize * stat.f_bavail
    if size >= 200 * 1024**3:
        pytest.skip("needs a disk with less room than data may take")

    async def large(_: web.Request) -> web.Response:
        return web.Response(headers={"Content-Length": str(size)})

    async with serving(large) as url:
        verdict = await judged(tmp_path, f"{url}/chats.jsonl", source=IN_IMAGE)
    assert (verdict.code, verdict.message, verdict.stdout) == (1, b"", "")
    assert "the data was not judged" in verdict.stderr
    assert "than there is room for" in verdict.stderr


async def test_words_of_an_example_buy_no_nodes(tmp_path: Path) -> None:
    output = {"image": "ACR_REPO_HERE.azurecr.io/IMAGE_NAME_HERE:0.0.1", "imagePushSecret": "ACR_REGISTRY_SECRET_HERE"}
    verdict = await served(tmp_path, chats(), output=output)
    sentence = "tuning.output.image: replace ACR_REPO_HERE and IMAGE_NAME_HERE with your own"
    assert verdict.event == Failed("PlaceholdersLeft", sentence)


def test_samples_go_first_and_then_warnings() -> None:
    data = Data(rows=1, format="text", tokens=9, summary=("1 row",), warnings=("w" * 2000,), samples=("s" * 1500,) * 3)
    kept = parse_event(fitted(data))
    assert kept == replace(data, samples=data.samples[:1])
    more = replace(data, warnings=("w" * 2000, "v" * 3000))
    assert parse_event(fitted(more)) == replace(data, samples=())
