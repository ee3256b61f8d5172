# SPDX-License-Identifier: Apache-2.0
"""Adapters from volumes, URLs and the hub to the folder an engine loads, through one cache."""

import gzip
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from adapter_files import BASE_NAME, a_base, an_adapter
from archives import a_tar, a_zip
from kaito_ray.artifacts.base import Base, read_base
from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.limits import ADAPTER
from kaito_ray.artifacts.prepare import Prepared, prepare_adapter
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.source import Stager
from kaito_ray.errors import AdapterRefused, ArtifactRefused, ArtifactUnavailable
from web import serving

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LIMITS = replace(ADAPTER, attempts=2, seconds=20)
Prepare = Callable[..., Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return read_base(a_base(tmp_path_factory.mktemp("base")), [BASE_NAME])


@pytest.fixture
def prepare(tmp_path: Path, base: Base) -> Prepare:
    stager = Stager(Cache(tmp_path / "cache"), LIMITS, allowed=("127.0.0.1",), folder="data", files={CONFIG, WEIGHTS})

    async def call(strength: float = 1.0, **source: Any) -> Prepared:
        return await prepare_adapter(stager, source, base=base, max_rank=64, strength=strength)

    return call


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def refused(made: Any) -> tuple[str, str]:
    with pytest.raises((ArtifactRefused, ArtifactUnavailable)) as caught:
        await made
    return caught.value.reason, str(caught.value)


async def test_a_volume(tmp_path: Path, prepare: Prepare) -> None:
    adapter = an_adapter(tmp_path / "volume")
    (adapter / "optimizer.pt").write_bytes(b"a pickle that stays where it is")
    prepared = await prepare(path=str(adapter))
    assert content(prepared.path).keys() == {CONFIG, WEIGHTS}
    assert content(prepared.path)[WEIGHTS] == (adapter / WEIGHTS).read_bytes()
    assert prepared.facts.rank == 8


async def test_a_volume_that_changes_gives_a_new_folder_and_keeps_the_old(tmp_path: Path, prepare: Prepare) -> None:
    adapter = an_adapter(tmp_path / "volume", rank=8)
    first = await prepare(path=str(adapter))
    before = content(first.path)
    again = await prepare(path=str(adapter))
    an_adapter(adapter, rank=16)
    second = await prepare(path=str(adapter))
    assert (again.path, again.digest) == (first.path, first.digest)
    assert second.digest != first.digest
    assert second.path != first.path
    assert content(first.path) == before


async def test_each_strength_has_its_own_folder(tmp_path: Path, prepare: Prepare) -> None:
    adapter = str(an_adapter(tmp_path / "volume"))
    full, half = await prepare(path=adapter), await prepare(0.5, path=adapter)
    assert full.digest == half.digest
    assert full.path != half.path
    assert content(full.path)[WEIGHTS] != content(half.path)[WEIGHTS]


async def test_a_mounted_config_map_is_links_inside(tmp_path: Path, prepare: Prepare) -> None:
    real = an_adapter(tmp_path / "volume" / "..2026_01_01")
    (tmp_path / "volume/..data").symlink_to(real.name)
    for name in (CONFIG, WEIGHTS):
        (tmp_path / "volume" / name).symlink_to(f"..data/{name}")
    assert content((await prepare(path=str(tmp_path / "volume"))).path)[WEIGHTS] == (real / WEIGHTS).read_bytes()


async def test_a_volume_must_not_lead_out(tmp_path: Path, prepare: Prepare) -> None:
    outside = an_adapter(tmp_path / "outside")
    inside = an_adapter(tmp_path / "volume")
    (inside / WEIGHTS).unlink()
    (inside / WEIGHTS).symlink_to(outside / WEIGHTS)
    assert (await refused(prepare(path=str(inside))))[0] == Reason.UNSAFE_PATH


async def test_a_pipe_on_a_volume_does_not_block(tmp_path: Path, prepare: Prepare) -> None:
    inside = an_adapter(tmp_path / "volume")
    (inside / WEIGHTS).unlink()
    os.mkfifo(inside / WEIGHTS)
    assert (await refused(prepare(path=str(inside))))[0] == Reason.NO_ADAPTER


async def test_a_pickle_on_a_volume(tmp_path: Path, prepare: Prepare) -> None:
    inside = an_adapter(tmp_path / "volume")
    (inside / WEIGHTS).rename(inside / "adapter_model.bin")
    assert (await refused(prepare(path=str(inside))))[0] == Reason.PICKLE
    assert (await refused(prepare(path=str(tmp_path / "missing"))))[0] == Reason.PATH_NOT_FOUND


def an_archive(adapter: Path, kind: str) -> bytes:
    members = [(f"my-adapter/{name}", (adapter / name).read_bytes()) for name in (CONFIG, WEIGHTS)]
    if kind == "zip":
        return a_zip(*members)
    return gzip.compress(a_tar(*members)) if kind == "tar.gz" else a_tar(*members)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
async def test_an_archive_of_the_web(tmp_path: Path, prepare: Prepare, kind: str) -> None:
    adapter = an_adapter(tmp_path / "adapter")
    body = an_archive(adapter, kind)

    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=body)

    async with serving(handler) as url:
        prepared = await prepare(urls=[f"{url}/download?id=7"])  # nothing in the name says what it is
    assert content(prepared.path)[WEIGHTS] == (adapter / WEIGHTS).read_bytes()


async def test_files_of_the_web(tmp_path: Path, prepare: Prepare) -> None:
    adapter = an_adapter(tmp_path / "adapter")

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(adapter / request.path.rpartition("/")[2])

    async with serving(handler) as url:
        prepared = await prepare(urls=[f"{url}/a/{CONFIG}?token=1", f"{url}/b/{WEIGHTS}"])
        assert content(prepared.path)[WEIGHTS] == (adapter / WEIGHTS).read_bytes()
        wrong = "sha256:" + "0" * 64
        urls = [f"{url}/a/{CONFIG}", f"{url}/b/{WEIGHTS}"]
        assert (await refused(prepare(urls=urls, digest=wrong)))[0] == Reason.DIGEST_MISMATCH
        assert (await prepare(urls=urls, digest=prepared.digest)).path == prepared.path
        reason, sentence = await refused(prepare(urls=[f"{url}/a/{CONFIG}", f"{url}/b/{CONFIG}"]))
        assert (reason, "two of the urls have the file name adapter_config.json" in sentence) == (
            Reason.INVALID_SOURCE,
            True,
        )
        an_adapter(adapter, tensors={})
        reason, _ = await refused(prepare(urls=urls))
        assert reason == Reason.CORRUPT_WEIGHTS


@pytest.mark.parametrize(
    ("source", "reason", "words"),
    [
        ({}, Reason.INVALID_SOURCE, "exactly one of image, urls, path and hub, got none"),
        ({"image": "a", "path": "b"}, Reason.INVALID_SOURCE, "got image and path"),
        ({"volume": "x"}, Reason.INVALID_SOURCE, "volume"),
        ({"image": "UPPER/x"}, Reason.INVALID_SOURCE, "no image reference"),
        ({"urls": ["http://10.0.0.1/x"]}, Reason.URL_REFUSED, "10.0.0.1"),
        ({"workspace": "tune-me"}, Reason.NOT_TUNED, "the tuning Workspace tune-me has no adapter yet"),
    ],
)
async def test_sources_that_are_refused(prepare: Prepare, source: dict[str, Any], reason: Reason, words: str) -> None:
    found, sentence = await refused(prepare(**source))
    assert (found, words in sentence) == (reason, True), sentence


class Hub:
    """The few routes of a model hub that fetching two files needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status: dict[str, tuple[int, dict[str, str]]] = {}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path in self.status:
            status, headers = self.status[request.path]
            return web.Response(status=status, headers=headers)
        commit = "c" * 40
        if "/tree/" in request.path:
            tree = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
                for path in sorted(self.folder.iterdir())
            ]
            return web.json_response(tree)
        if request.path.startswith("/api/models/org/adapter"):
            files = [{"rfilename": p.name, "size": p.stat().st_size} for p in sorted(self.folder.iterdir())]
            return web.json_response({"id": "org/adapter", "sha": commit, "siblings": files, "tags": []})
        name = request.path.rpartition("/")[2]
        raw = (self.folder / name).read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(raw).hexdigest()}"'}
        return web.Response(body=raw, headers=headers)


async def test_the_hub(tmp_path: Path, base: Base) -> None:
    adapter = an_adapter(tmp_path / "adapter")
    (adapter / "README.md").write_text("not wanted")
    hub = Hub(adapter)
    async with serving(hub.handle) as url:
        stager = Stager(Cache(tmp_path / "cache"), LIMITS, files={CONFIG, WEIGHTS}, hub_endpoint=url, hub_token="hf_x")
        prepared = await prepare_adapter(stager, {"hub": "org/adapter"}, base=base, max_rank=64)
        assert content(prepared.path)[WEIGHTS] == (adapter / WEIGHTS).read_bytes()
        api = "/api/models/org/adapter"
        hub.status[api] = (500, {})
        again = await prepare_adapter(stager, {"hub": "org/adapter"}, base=base, max_rank=64)
        assert again.path == prepared.path  # a hub that is down does not matter for what is here
        stager = Stager(Cache(tmp_path / "fresh"), LIMITS, files={CONFIG, WEIGHTS}, hub_endpoint=url, hub_token="hf_x")
        for status, headers, reason in (
            (401, {"X-Error-Code": "GatedRepo"}, Reason.GATED),
            (401, {"X-Error-Code": "RepoNotFound"}, Reason.NOT_FOUND),
            (403, {}, Reason.FORBIDDEN),
            (404, {"X-Error-Code": "RevisionNotFound"}, Reason.REVISION_NOT_FOUND),
            (429, {}, Reason.RATE_LIMITED),
            (500, {}, Reason.SERVER_ERROR),
        ):
            hub.status[api] = (status, headers)
            with pytest.raises((ArtifactRefused, ArtifactUnavailable)) as caught:
                await prepare_adapter(stager, {"hub": "org/adapter"}, base=base, max_rank=64)
            assert (status, caught.value.reason) == (status, reason)
            assert "hf_x" not in str(caught.value)
    with pytest.raises(ArtifactUnavailable) as gone:
        await prepare_adapter(stager, {"hub": "org/adapter"}, base=base, max_rank=64)
    assert gone.value.reason == Reason.CONNECTION_FAILED


async def test_an_entry_is_held_until_it_is_released(tmp_path: Path, prepare: Prepare) -> None:
    prepared = await prepare(path=str(an_adapter(tmp_path / "volume")))
    cache = Cache(tmp_path / "cache")
    with pytest.raises(ArtifactRefused):
        await cache.make_room(1 << 60)
    assert [entry.name for entry in (tmp_path / "cache/entries").iterdir()] == [prepared.path.name]
    prepared.release()
    with pytest.raises(ArtifactRefused):
        await cache.make_room(1 << 60)
    assert not prepared.path.exists()


async def test_a_refused_adapter_leaves_nothing_to_load(tmp_path: Path, prepare: Prepare) -> None:
    with pytest.raises(AdapterRefused):
        await prepare(path=str(an_adapter(tmp_path / "volume", rank=128)))
    names = [entry.name for entry in (tmp_path / "cache/entries").iterdir()]
    assert not any(name.startswith("adapter-") for name in names)
    config = json.loads((tmp_path / "volume" / CONFIG).read_text())
    assert config["r"] == 128
