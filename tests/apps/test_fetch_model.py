# SPDX-License-Identifier: Apache-2.0
"""Models from registries and hubs that misbehave: what is loaded, what is refused in which words, what is resumed."""

import asyncio
import gzip
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from archives import a_link, a_tar
from fake_registry import OCI, FakeRegistry, sha256
from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.limits import MODEL, Limits
from kaito_ray.artifacts.model import FetchedModel, fetch_model, model_stager
from kaito_ray.artifacts.pack import Facts, Form
from kaito_ray.artifacts.progress import Progress
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.source import Source
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable
from model_images import NAME, REVISION, SHARDS, a_model, a_shard, content, put_files, put_model
from web import serving

LIMITS = replace(MODEL, seconds=20, attempts=3, idle_s=2)
PLAIN_TAR = f"{OCI}.layer.v1.tar"


class Node:
    """Fetches models into the cache of one node, as pods do one after the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.progress = Progress()
        self.limit: int | None = None
        (root / "auth").mkdir()

    def login(self, name: str, host: str, user: str, password: str) -> None:
        auths = {"auths": {host: {"username": user, "password": password}}}
        (self.root / "auth" / f"{name}.json").write_text(json.dumps(auths))

    async def fetch(self, url: str, *, limits: Limits = LIMITS, hub: str = "", **options: Any) -> FetchedModel:
        self.progress = Progress()
        stager = model_stager(
            Cache(self.root / "cache", self.limit),
            limits=limits,
            auth_dir=self.root / "auth",
            hub_token="hf_secret",
            hub_endpoint=url if hub else None,
            progress=self.progress,
        )
        source = Source(hub=hub, revision=options.pop("revision", None)) if hub else None
        names = options.pop("names", (NAME,))
        architecture = options.pop("architecture", "Phi3ForCausalLM")
        image = Source.parse({"image": f"{url.removeprefix('http://')}/team/model:1"} | options) if not hub else None
        wanted = source or image
        assert wanted
        return await fetch_model(stager, wanted, names=names, architecture=architecture)

    async def refused(self, url: str, **options: Any) -> tuple[str, str]:
        """Reason and sentence."""
        with pytest.raises((ArtifactRefused, ArtifactUnavailable)) as caught:
            await self.fetch(url, **options)
        assert "hf_secret" not in str(caught.value)
        assert "hunter2" not in str(caught.value)
        return caught.value.reason, str(caught.value)

    @property
    def entries(self) -> list[Path]:
        """What looks whole to the next pod."""
        folder = self.root / "cache/entries"
        return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize("form", Form)
async def test_both_forms_of_an_image(node: Node, tmp_path: Path, form: Form) -> None:
    model, registry = a_model(tmp_path / "model"), FakeRegistry()
    digest = put_model(registry, "1", model, form)
    async with serving(registry.handle) as url:
        fetched = await node.fetch(url)
        asked = len(registry.seen)
        again = await node.fetch(url)
    assert content(fetched.path) == content(model)
    assert (fetched.digest, fetched.revision) == (digest, REVISION)
    assert again.path == fetched.path
    assert [path for _, path, _ in registry.seen[asked:] if "/blobs/" in path] == []
    assert not any((node.root / "cache/work").iterdir())


async def test_progress_counts_every_byte(node: Node, tmp_path: Path) -> None:
    registry = FakeRegistry()
    put_model(registry, "1", a_model(tmp_path / "model"))
    async with serving(registry.handle) as url:
        await node.fetch(url)
    layers = json.loads(registry.manifests["1"][1])["layers"]
    assert node.progress.total == node.progress.done == sum(layer["size"] for layer in layers)
    assert (node.progress.finished, node.progress.resumed) == (True, 0)


def without(registry: FakeRegistry, model: Path) -> None:
    (model / SHARDS[1]).unlink()
    put_files(registry, "1", content(model))


def with_another_shard(registry: FakeRegistry, model: Path) -> None:
    (model / SHARDS[1]).write_bytes(a_shard("layer.7"))
    put_files(registry, "1", content(model))


def with_a_cut_shard(registry: FakeRegistry, model: Path) -> None:
    (model / SHARDS[1]).write_bytes((model / SHARDS[1]).read_bytes()[:-100])
    put_files(registry, "1", content(model))


def altered_in_the_registry(registry: FakeRegistry, model: Path) -> None:
    put_model(registry, "1", model)
    layer = json.loads(registry.manifests["1"][1])["layers"][2]
    raw = registry.blobs[layer["digest"]]
    registry.blobs[layer["digest"]] = raw[:5000] + bytes(8) + raw[5008:]


def gone_from_the_registry(registry: FakeRegistry, model: Path) -> None:
    put_model(registry, "1", model)
    del registry.blobs[json.loads(registry.manifests["1"][1])["layers"][2]["digest"]]


def pickled(registry: FakeRegistry, model: Path) -> None:
    for shard in SHARDS:
        (model / shard).rename(model / f"{shard}.bin")
    (model / "model.safetensors.index.json").unlink()
    put_files(registry, "1", content(model))


def pickled_in_a_tar(registry: FakeRegistry, _: Path) -> None:
    config = a_tar(("workspace/weights/config.json", b"{}"))
    weights = a_tar(("workspace/weights/pytorch_model.bin", bytes(3_000_000)))
    registry.add_image("1", config, weights, media_type=PLAIN_TAR)


def another_model(registry: FakeRegistry, model: Path) -> None:
    put_model(registry, "1", model, facts=Facts("other/model"))


def another_architecture(registry: FakeRegistry, model: Path) -> None:
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    put_files(registry, "1", content(model))


def no_model(registry: FakeRegistry, _: Path) -> None:
    registry.add_image("1", a_tar(("etc/passwd", b"root")), media_type=PLAIN_TAR)


def config_that_is_none(registry: FakeRegistry, model: Path) -> None:
    (model / "config.json").write_text("[]")
    put_files(registry, "1", content(model))


def no_index(registry: FakeRegistry, model: Path) -> None:
    (model / "model.safetensors.index.json").unlink()
    (model / SHARDS[0]).unlink()
    put_files(registry, "1", content(model))


REFUSALS: dict[Callable[[FakeRegistry, Path], None], tuple[Reason, str]] = {
    without: (Reason.SHARD_MISSING, f"{SHARDS[1]} of 2 shards is not there, though model.safetensors.index.json"),
    no_index: (Reason.SHARD_MISSING, "has 1 of 2 shards"),
    with_another_shard: (Reason.SHARD_MISMATCH, f"{SHARDS[1]} lacks layer.1"),
    with_a_cut_shard: (Reason.CORRUPT_WEIGHTS, f"{SHARDS[1]} is damaged or cut short"),
    altered_in_the_registry: (Reason.DIGEST_MISMATCH, "not what was pushed"),
    gone_from_the_registry: (Reason.NOT_FOUND, "does not have it (404)"),
    pickled: (Reason.PICKLE, "which can run code and is not read; convert them to safetensors"),
    pickled_in_a_tar: (Reason.PICKLE, "pytorch_model.bin, a pickle"),
    another_model: (Reason.WRONG_MODEL, "is the model other/model, not org/model"),
    another_architecture: (Reason.WRONG_MODEL, "LlamaForCausalLM, the model asked for is a Phi3ForCausalLM"),
    no_model: (Reason.NO_MODEL, "no folder in it has a config.json and *.safetensors; it has etc/passwd"),
    config_that_is_none: (Reason.INVALID_MODEL_CONFIG, "config.json is not a JSON object"),
}


@pytest.mark.parametrize("spoil", REFUSALS, ids=lambda spoil: spoil.__name__)
async def test_images_that_are_refused(node: Node, tmp_path: Path, spoil: Callable[[FakeRegistry, Path], None]) -> None:
    registry, model = FakeRegistry(), a_model(tmp_path / "model")
    spoil(registry, model)
    async with serving(registry.handle) as url:
        reason, sentence = await node.refused(url)
        again, _ = await node.refused(url)
    expected, words = REFUSALS[spoil]
    assert (reason, words in sentence) == (expected, True), sentence
    assert again == expected
    assert f"{url.removeprefix('http://')}/team/model:1" in sentence


async def test_a_wrong_secret(node: Node, tmp_path: Path) -> None:
    registry = FakeRegistry(users={"me": "right"})
    put_model(registry, "1", a_model(tmp_path / "model"))
    async with serving(registry.handle) as url:
        reason, sentence = await node.refused(url)
        assert (reason, "no pull secret has one for it (401)" in sentence) == (Reason.UNAUTHORIZED, True)
        node.login("regcred", url.removeprefix("http://"), "me", "hunter2")
        reason, sentence = await node.refused(url, image_pull_secrets=("regcred",))
        assert (reason, "refused the login of regcred (401)" in sentence) == (Reason.UNAUTHORIZED, True)
        node.login("regcred", url.removeprefix("http://"), "me", "right")
        await node.fetch(url, image_pull_secrets=("regcred",))


async def test_a_missing_tag(node: Node) -> None:
    async with serving(FakeRegistry().handle) as url:
        reason, sentence = await node.refused(url)
    assert (reason, "team/model:1" in sentence) == (Reason.NOT_FOUND, True)
    assert node.entries == []


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (429, Reason.RATE_LIMITED, "limits the rate of requests (429)"),
        (500, Reason.SERVER_ERROR, "answers 500"),
        (403, Reason.FORBIDDEN, "(403)"),
    ],
)
@pytest.mark.parametrize("kind", ["manifests", "blobs"])
async def test_a_registry_that_answers(
    node: Node, tmp_path: Path, kind: str, status: int, reason: Reason, words: str
) -> None:
    registry = FakeRegistry()
    put_model(registry, "1", a_model(tmp_path / "model"))
    registry.fault = lambda request: web.Response(status=status) if f"/{kind}/" in request.path else None
    async with serving(registry.handle) as url:
        found, sentence = await node.refused(url)
        assert (found, words in sentence) == (reason, True), sentence
        assert node.entries == []
        registry.fault = lambda _: None
        await node.fetch(url)  # nothing of the failure stays


async def test_a_registry_that_recovers_in_time(node: Node, tmp_path: Path) -> None:
    registry, model = FakeRegistry(), a_model(tmp_path / "model")
    put_model(registry, "1", model)
    answers = [503, 429, 500]

    def fault(_: web.Request) -> web.Response | None:
        return web.Response(status=answers.pop(), headers={"Retry-After": "0"}) if answers else None

    registry.fault = fault
    async with serving(registry.handle) as url:
        fetched = await node.fetch(url, limits=replace(LIMITS, attempts=5))
    assert content(fetched.path) == content(model)


async def test_a_registry_that_falls_silent(node: Node, tmp_path: Path) -> None:
    registry = FakeRegistry()
    put_model(registry, "1", a_model(tmp_path / "model"))

    async def silent(request: web.Request) -> web.StreamResponse:
        if "/blobs/" not in request.path:
            return await registry.handle(request)
        response = web.StreamResponse()
        response.content_length = len(registry.blobs[request.path.rpartition("/")[2]])
        await response.prepare(request)
        await asyncio.sleep(30)
        return response

    async with serving(silent) as url:
        reason, _ = await node.refused(url, limits=replace(LIMITS, attempts=1, idle_s=0.3))
    assert reason == Reason.TIMEOUT
    assert node.entries == []


@pytest.mark.parametrize("form", Form)
async def test_a_fetch_that_broke_off_goes_on(node: Node, tmp_path: Path, form: Form) -> None:
    registry, model = FakeRegistry(break_after=1_500_000), a_model(tmp_path / "model")
    put_model(registry, "1", model, form)
    async with serving(registry.handle) as url:
        reason, _ = await node.refused(url, limits=replace(LIMITS, attempts=1))
        assert (reason, node.entries) == (Reason.TRUNCATED, [])
        registry.break_after = 0
        registry.ranges.clear()
        fetched = await node.fetch(url)
    assert content(fetched.path) == content(model)
    assert len(registry.ranges) >= 1
    assert node.progress.resumed > 1_000_000
    assert node.progress.done == node.progress.total


async def test_a_bad_layer_costs_no_good_one(node: Node, tmp_path: Path) -> None:
    registry, model = FakeRegistry(), a_model(tmp_path / "model")
    put_model(registry, "1", model)
    first, second = (layer["digest"] for layer in json.loads(registry.manifests["1"][1])["layers"][1:])
    right = registry.blobs[second]
    registry.blobs[second] = right[:-2000] + bytes(1) + right[-1999:]
    come = asyncio.Event()

    async def one_after_the_other(request: web.Request) -> web.StreamResponse:
        if request.path.endswith(second):
            await come.wait()
        answer = await registry.handle(request)
        if request.path.endswith(first):
            come.set()
        return answer

    async with serving(one_after_the_other) as url:
        assert (await node.refused(url))[0] == Reason.DIGEST_MISMATCH
        registry.blobs[second] = right
        fetched = await node.fetch(url)
    assert content(fetched.path) == content(model)
    # Of the good one only what stands behind its file came again.
    size = (model / SHARDS[0]).stat().st_size
    assert registry.asked()[f"/v2/team/model/blobs/{second}"] == 2
    assert [int(one.removeprefix("bytes=").removesuffix("-")) > size for one in registry.ranges] == [True]


async def test_a_layer_that_lost_its_end(node: Node, tmp_path: Path) -> None:
    """What a tar has behind its file comes anew, the file itself does not."""
    registry, model = FakeRegistry(), a_model(tmp_path / "model")
    put_model(registry, "1", model)
    size = (model / SHARDS[0]).stat().st_size
    registry.break_after = 512 + size + 10
    async with serving(registry.handle) as url:
        await node.refused(url, limits=replace(LIMITS, attempts=1))
        registry.break_after = 0
        fetched = await node.fetch(url)
    assert content(fetched.path) == content(model)


async def test_tars_that_only_look_like_one_file(node: Node, tmp_path: Path) -> None:
    """A second small file behind the weights, a name in a long header, a layer over another one."""
    model, registry = a_model(tmp_path / "model"), FakeRegistry()
    files = content(model)
    first, second = (files[shard] for shard in SHARDS)
    deep = "d" * 120
    registry.add_image(
        "1",
        a_tar((f"{deep}/{SHARDS[0]}", bytes(2_000_000))),
        a_tar((f"{deep}/{SHARDS[0]}", first), (f"{deep}/config.json", files["config.json"])),
        a_tar((f"{deep}/{SHARDS[1]}", second)),
        a_tar(
            (f"{deep}/tokenizer.json", b"{}"),
            (f"{deep}/model.safetensors.index.json", files["model.safetensors.index.json"]),
        ),
        media_type=PLAIN_TAR,
    )
    async with serving(registry.handle) as url:
        fetched = await node.fetch(url)
    assert content(fetched.path) == files


async def test_a_disk_that_is_too_small_is_said_first(node: Node, tmp_path: Path) -> None:
    registry = FakeRegistry()
    put_model(registry, "1", a_model(tmp_path / "model"))
    node.limit = 4_000_000
    async with serving(registry.handle) as url:
        reason, sentence = await node.refused(url)
    assert (reason, "more than there is room for" in sentence) == (Reason.DISK_TOO_SMALL, True)
    assert not any("/blobs/" in path for _, path, _ in registry.seen)


async def test_one_fetch_for_many_pods(node: Node, tmp_path: Path) -> None:
    registry, model = FakeRegistry(), a_model(tmp_path / "model")
    put_model(registry, "1", model)
    async with serving(registry.handle) as url:
        fetched = await asyncio.gather(*(node.fetch(url) for _ in range(8)))
    assert len({one.path for one in fetched}) == 1
    blobs = {path: count for path, count in registry.asked().items() if "/blobs/" in path}
    assert set(blobs.values()) == {1}


async def test_an_image_with_a_system_around_the_model(node: Node, tmp_path: Path) -> None:
    """KAITO's private images of v1alpha1: a runtime with the weights copied into it, compressed as docker does."""
    registry, files = FakeRegistry(), content(a_model(tmp_path / "model"))
    system = a_tar(("usr/lib/python3/config.json", b"{}"), a_link("etc/alternatives/vi", "/usr/bin/vim"))
    weights = a_tar(*((f"workspace/tfs/weights/{name}", raw) for name, raw in files.items()))
    registry.add_image("1", gzip.compress(system, 1), gzip.compress(weights, 1))
    async with serving(registry.handle) as url:
        fetched = await node.fetch(url)
    assert content(fetched.path) == files
    assert [path.name for path in node.entries[0].iterdir()] == ["workspace"]


async def test_unwanted_files_of_an_image_do_not_travel(node: Node, tmp_path: Path) -> None:
    registry, files = FakeRegistry(), content(a_model(tmp_path / "model"))
    put_files(registry, "1", files | {"pytorch_model.bin": b"pickle", "original/consolidated.00.pth": b"pickle"})
    async with serving(registry.handle) as url:
        fetched = await node.fetch(url)
    assert content(fetched.path) == files
    assert registry.asked()[f"/v2/team/model/blobs/{sha256(b'pickle')}"] == 0


class Hub:
    """The routes of a model hub that a model needs, from a folder, with what goes wrong on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault: Callable[[web.Request], web.StreamResponse | None] = lambda _: None
        self.altered: set[str] = set()
        self.ranges: list[str] = []
        self.tokens: set[str] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.tokens.add(request.headers.get("Authorization", ""))
        if (answer := self.fault(request)) is not None:
            return answer
        if request.path.startswith("/api/models/org/model"):
            siblings = [self._sibling(path) for path in sorted(self.folder.iterdir())]
            return web.json_response({"id": NAME, "sha": REVISION, "siblings": siblings, "tags": []})
        _, _, name = request.path.partition(f"/{NAME}/resolve/{REVISION}/")
        raw = (self.folder / name).read_bytes()
        if name in self.altered:
            raw = raw[:-1] + bytes([raw[-1] ^ 1])
        if asked := request.headers.get("Range"):
            self.ranges.append(name)
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            headers = {"Content-Range": f"bytes {start}-{len(raw) - 1}/{len(raw)}"}
            return web.Response(status=206, body=raw[start:], headers=headers)
        return web.Response(body=raw)

    def _sibling(self, path: Path) -> dict[str, Any]:
        raw = path.read_bytes()
        entry: dict[str, Any] = {"rfilename": path.name, "size": len(raw)}
        if path.suffix == ".safetensors":
            digest = hashlib.sha256(raw).hexdigest()
            return entry | {"blobId": "0" * 40, "lfs": {"sha256": digest, "size": len(raw), "pointerSize": 134}}
        return entry | {"blobId": hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()}  # noqa: S324


async def test_the_hub(node: Node, tmp_path: Path) -> None:
    model = a_model(tmp_path / "model")
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    hub = Hub(model)
    async with serving(hub.handle) as url:
        fetched = await node.fetch(url, hub=NAME, revision=REVISION)
        assert hub.tokens == {"Bearer hf_secret"}
    (model / "pytorch_model.bin").unlink()
    assert content(fetched.path) == content(model)
    assert fetched.revision == REVISION
    assert node.progress.total == node.progress.done == sum(path.stat().st_size for path in model.iterdir())
    # The hub is gone; a pinned model that is here needs none.
    again = await node.fetch("http://127.0.0.1:1", hub=NAME, revision=REVISION)
    assert (again.path, again.digest, again.revision) == (fetched.path, fetched.digest, REVISION)


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (401, "GatedRepo", Reason.GATED),
        (401, "RepoNotFound", Reason.NOT_FOUND),
        (401, "", Reason.UNAUTHORIZED),
        (403, "GatedRepo", Reason.GATED),
        (403, "", Reason.FORBIDDEN),
        (404, "RepoNotFound", Reason.NOT_FOUND),
        (404, "RevisionNotFound", Reason.REVISION_NOT_FOUND),
        (429, "", Reason.RATE_LIMITED),
        (500, "", Reason.SERVER_ERROR),
    ],
)
@pytest.mark.parametrize("route", ["/api/", "/resolve/"])
async def test_a_hub_that_answers(
    node: Node, tmp_path: Path, route: str, status: int, code: str, reason: Reason
) -> None:
    hub = Hub(a_model(tmp_path / "model"))
    hub.fault = lambda request: (
        web.Response(status=status, headers={"X-Error-Code": code}) if route in request.path else None
    )
    async with serving(hub.handle) as url:
        found, sentence = await node.refused(url, hub=NAME, revision=REVISION, limits=replace(LIMITS, attempts=1))
    assert (found, NAME in sentence) == (reason, True), sentence
    assert node.entries == []


@pytest.mark.parametrize("name", [SHARDS[1], "config.json"])
async def test_a_file_that_is_not_what_the_hub_has_a_hash_of(node: Node, tmp_path: Path, name: str) -> None:
    hub = Hub(a_model(tmp_path / "model"))
    hub.altered = {name}
    async with serving(hub.handle) as url:
        reason, sentence = await node.refused(url, hub=NAME)
        assert (reason, f"org/model: {name}" in sentence) == (Reason.DIGEST_MISMATCH, True), sentence
        assert node.entries == []
        hub.altered = set()
        fetched = await node.fetch(url, hub=NAME)
    assert content(fetched.path) == content(hub.folder)


async def test_a_hub_that_breaks_off(node: Node, tmp_path: Path) -> None:
    model = a_model(tmp_path / "model")
    hub = Hub(model)
    size = (model / SHARDS[0]).stat().st_size

    async def breaking(request: web.Request) -> web.StreamResponse:
        if not request.path.endswith(SHARDS[0]):
            return await hub.handle(request)
        response = web.StreamResponse()
        response.content_length = size
        await response.prepare(request)
        await response.write((model / SHARDS[0]).read_bytes()[:1_500_000])
        assert request.transport
        request.transport.close()
        return response

    async with serving(breaking) as url:
        reason, _ = await node.refused(url, hub=NAME, limits=replace(LIMITS, attempts=1))
        assert (reason, node.entries) == (Reason.TRUNCATED, [])
    async with serving(hub.handle) as url:
        fetched = await node.fetch(url, hub=NAME)
    assert content(fetched.path) == content(model)
    assert SHARDS[0] in hub.ranges


async def test_a_volume_is_used_where_it_lies(tmp_path: Path) -> None:
    model = a_model(tmp_path / "model")
    stager = model_stager(Cache(tmp_path / "cache"))
    fetched = await fetch_model(stager, Source(path=str(tmp_path)), architecture="Phi3ForCausalLM")
    assert fetched.path == model
    (model / SHARDS[0]).unlink()
    with pytest.raises(ArtifactRefused) as caught:
        await fetch_model(stager, Source(path=str(tmp_path)))
    assert caught.value.reason == Reason.SHARD_MISSING


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(disk))
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(("umount", "--lazy", str(disk)), check=True)  # what was fetched is still held


async def test_a_disk_that_fills_up_meanwhile(small_disk: Path, tmp_path: Path) -> None:
    node, registry, model = Node(small_disk), FakeRegistry(), a_model(tmp_path / "model")
    put_model(registry, "1", model)
    other = small_disk / "other"

    def fill(request: web.Request) -> None:
        if "/blobs/" in request.path and not other.exists():
            other.write_bytes(bytes(shutil.disk_usage(small_disk).free - 1_000_000))

    registry.fault = fill
    async with serving(registry.handle) as url:
        reason, sentence = await node.refused(url)
        assert (reason, "the disk is full after" in sentence) == (Reason.DISK_TOO_SMALL, True), sentence
        assert node.entries == []
        other.write_bytes(b"")
        fetched = await node.fetch(url)
    assert content(fetched.path) == content(model)


async def test_what_is_here_needs_no_room_again(small_disk: Path, tmp_path: Path) -> None:
    node, registry, model = Node(small_disk), FakeRegistry(break_after=2_000_000), a_model(tmp_path / "model")
    put_model(registry, "1", model)
    async with serving(registry.handle) as url:
        await node.refused(url, limits=replace(LIMITS, attempts=1))
        registry.break_after = 0
        # Enough beside the 64 MiB that are never given away for the rest, not for the whole of 4.9 MB.
        room = 64 * 1024 * 1024 + 3_000_000
        (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
        fetched = await node.fetch(url)
    assert content(fetched.path) == content(model)
