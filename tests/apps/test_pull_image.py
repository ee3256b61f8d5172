# SPDX-License-Identifier: Apache-2.0
"""Images from registries that misbehave: what is staged, what is refused, where credentials go."""

import asyncio
import gzip
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from archives import a_link, a_member, a_tar
from fake_registry import OCI, FakeRegistry, sha256
from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.limits import Limits
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.source import Source, Stager
from kaito_ray.artifacts.staged import Staged
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable
from web import Names, serving

LIMITS = Limits(bytes=64 * 1024 * 1024, entries=100, seconds=20, attempts=3, idle_s=2)
CONFIG = b'{"r": 8}'
WEIGHTS = os.urandom(3_000_000)
LAYER = gzip.compress(a_tar(("data/adapter_config.json", CONFIG), ("data/adapter_model.safetensors", WEIGHTS)), 1)
FILES = {"data/adapter_config.json": CONFIG, "data/adapter_model.safetensors": WEIGHTS}


class Puller:
    """Stages images into one cache."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = Cache(root / "cache")
        self.auth = root / "auth"
        self.auth.mkdir(exist_ok=True)

    def login(self, name: str, host: str, user: str, password: str) -> None:
        auths = {"auths": {host: {"username": user, "password": password}}}
        (self.auth / f"{name}.json").write_text(json.dumps(auths))

    async def staged(
        self, url: str, *, limits: Limits = LIMITS, names: Names | None = None, **source: object
    ) -> Staged:
        stager = Stager(self.cache, limits, folder="data", auth_dir=self.auth, resolver=names)
        image = f"{url.removeprefix('http://')}/team/adapter:1.0"
        return await stager.stage(Source.parse({"image": image} | source))

    async def __call__(self, url: str, **options: object) -> tuple[dict[str, bytes], str]:
        """Files and digest."""
        with await self.staged(url, **options) as staged:  # type: ignore[arg-type]
            found = {
                str(path.relative_to(staged.path)): path.read_bytes()
                for path in staged.path.rglob("*")
                if path.is_file()
            }
            return found, staged.digest

    async def refused(self, url: str, **options: object) -> tuple[str, str]:
        """Reason and sentence; asserts that nothing is left that looks whole."""
        with pytest.raises((ArtifactRefused, ArtifactUnavailable)) as caught:
            await self(url, **options)
        assert not any((self.root / "cache/entries").iterdir())
        return caught.value.reason, str(caught.value)


@pytest.fixture
def pull(tmp_path: Path) -> Puller:
    return Puller(tmp_path)


async def test_one_layer_as_kaito_makes_it(pull: Puller) -> None:
    registry = FakeRegistry()
    digest = registry.add_image("1.0", LAYER, annotations={"sh.kaito.model.name": "phi-3"})
    async with serving(registry.handle) as url:
        assert await pull(url) == (FILES, digest)
        with await pull.staged(url) as staged:
            assert staged.annotations == {"sh.kaito.model.name": "phi-3"}
    assert registry.asked()[f"/v2/team/adapter/blobs/{sha256(LAYER)}"] == 1


async def test_several_layers_with_what_else_is_in_an_image(pull: Puller) -> None:
    registry = FakeRegistry()
    rootfs = gzip.compress(
        a_tar(("bin/sh", b"#!"), a_link("bin/bash", "/bin/sh"), ("data/old", b"1"), ("data/gone", b"1"))
    )
    registry.add_image("1.0", rootfs, LAYER, gzip.compress(a_tar(("data/.wh.gone", b""), ("data/old", b"2"))))
    async with serving(registry.handle) as url:
        assert (await pull(url))[0] == FILES | {"data/old": b"2"}


@pytest.mark.parametrize("kind", ["tar", "docker", "zstd", "files"])
async def test_kinds_of_layers(pull: Puller, kind: str) -> None:
    registry = FakeRegistry()
    plain = gzip.decompress(LAYER)
    expected = FILES
    if kind == "tar":
        registry.add_image("1.0", plain, media_type=f"{OCI}.layer.v1.tar")
    elif kind == "docker":
        docker = "application/vnd.docker.distribution.manifest.v2+json"
        registry.add_image(
            "1.0", LAYER, media_type="application/vnd.docker.image.rootfs.diff.tar.gzip", mediaType=docker
        )
    elif kind == "zstd":
        zstd = pytest.importorskip("backports.zstd", reason="backports.zstd is not installed")
        registry.add_image("1.0", zstd.compress(plain), media_type=f"{OCI}.layer.v1.tar+zstd")
    else:
        expected = {name.removeprefix("data/"): content for name, content in FILES.items()}
        layers = [
            {
                "mediaType": f"{OCI}.layer.v1.tar",  # what oras calls a plain file
                "annotations": {"org.opencontainers.image.title": name},
                **registry.add_blob(content),
            }
            for name, content in expected.items()
        ]
        registry.add_image("1.0", layers=layers)
    async with serving(registry.handle) as url:
        assert (await pull(url))[0] == expected


async def test_an_index_and_its_amd64_image(pull: Puller) -> None:
    registry = FakeRegistry()
    images = []
    for machine, layer in (("arm64", gzip.compress(a_tar(("data/arm", b"")))), ("amd64", LAYER)):
        digest = registry.add_image(machine, layer)
        size = len(registry.manifests[digest][1])
        images.append(
            {
                "mediaType": f"{OCI}.manifest.v1+json",
                "digest": digest,
                "size": size,
                "platform": {"os": "linux", "architecture": machine},
            }
        )
    index = registry.add_manifest("1.0", {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": images})
    async with serving(registry.handle) as url:
        assert await pull(url) == (FILES, index)
        registry.add_manifest("1.0", {"mediaType": f"{OCI}.index.v1+json", "manifests": images[:1]})
        with pytest.raises(ArtifactRefused, match="no image for linux/amd64"):
            await pull(url)


async def test_a_digest_needs_no_registry_once_it_is_here(pull: Puller) -> None:
    registry = FakeRegistry()
    digest = registry.add_image("1.0", LAYER)
    async with serving(registry.handle) as url:
        await pull(url)
        asked = len(registry.seen)
        assert (await pull(url, digest=digest))[1] == digest
        assert len(registry.seen) == asked
    # The tag cannot be looked up any more; what it meant last is still served.
    assert (await pull(url, limits=replace(LIMITS, attempts=1)))[1] == digest


async def test_a_pinned_digest_beats_a_moved_tag(pull: Puller) -> None:
    registry = FakeRegistry()
    pinned = registry.add_image("1.0", LAYER)
    registry.add_image("1.0", gzip.compress(a_tar(("data/new", b""))))
    async with serving(registry.handle) as url:
        assert await pull(url, digest=pinned) == (FILES, pinned)


async def test_the_tag_moves_in_the_middle(pull: Puller) -> None:
    registry = FakeRegistry()
    old = gzip.compress(a_tar(("data/old", os.urandom(100_000))))
    registry.add_image("1.0", old)
    moved = []

    def fault(request: web.Request) -> web.Response | None:
        if request.path.endswith(sha256(old)):
            # Somebody pushes, and the old image is garbage.
            moved.append(registry.add_image("1.0", LAYER))
            return web.Response(status=404)
        return None

    registry.fault = fault
    async with serving(registry.handle) as url:
        assert await pull(url) == (FILES, moved[0])


async def test_a_layer_that_breaks_off_is_continued(pull: Puller) -> None:
    registry = FakeRegistry(break_after=1_500_000)
    registry.add_image("1.0", LAYER)
    async with serving(registry.handle) as url:
        assert (await pull(url))[0] == FILES
    assert registry.ranges


async def test_a_pull_that_gave_up_is_continued(pull: Puller) -> None:
    registry = FakeRegistry(break_after=1_500_000)
    registry.add_image("1.0", LAYER)
    async with serving(registry.handle) as url:
        assert (await pull.refused(url, limits=replace(LIMITS, attempts=1)))[0] == Reason.TRUNCATED
        registry.break_after = 0
        assert (await Puller(pull.root)(url))[0] == FILES
    assert len(registry.ranges) == 1


async def test_bytes_that_were_not_pushed(pull: Puller) -> None:
    registry = FakeRegistry()
    registry.add_image("1.0", LAYER)
    registry.blobs[sha256(LAYER)] = LAYER[:-1] + b"x"
    async with serving(registry.handle) as url:
        assert (await pull.refused(url))[0] == Reason.DIGEST_MISMATCH
        registry.blobs[sha256(LAYER)] = LAYER + b"x"
        assert (await pull.refused(url))[0] == Reason.DIGEST_MISMATCH
        registry.blobs[sha256(LAYER)] = LAYER
        assert (await pull(url))[0] == FILES


async def test_a_manifest_that_was_not_asked_for(pull: Puller) -> None:
    registry = FakeRegistry()
    digest = registry.add_image("1.0", LAYER)
    registry.manifests[digest] = registry.manifests[registry.add_image("other", LAYER, LAYER)]
    async with serving(registry.handle) as url:
        assert (await pull.refused(url, digest=digest))[0] == Reason.DIGEST_MISMATCH


@pytest.mark.parametrize(
    ("status", "reason", "tries"),
    [
        (404, Reason.NOT_FOUND, 1),
        (429, Reason.RATE_LIMITED, 3),
        (500, Reason.SERVER_ERROR, 3),
        (503, Reason.SERVER_ERROR, 3),
    ],
)
@pytest.mark.parametrize("part", ["manifests", "blobs"])
async def test_statuses(pull: Puller, part: str, status: int, reason: Reason, tries: int) -> None:
    registry = FakeRegistry()
    registry.add_image("1.0", LAYER)
    registry.fault = lambda request: web.Response(status=status) if f"/{part}/" in request.path else None
    async with serving(registry.handle) as url:
        found, sentence = await pull.refused(url)
    assert found == reason
    assert "team/adapter:1.0" in sentence
    assert max(count for path, count in registry.asked().items() if f"/{part}/" in path) == tries


async def test_a_tag_that_is_missing(pull: Puller) -> None:
    async with serving(FakeRegistry().handle) as url:
        reason, sentence = await pull.refused(url)
    assert (reason, "team/adapter:1.0: 127.0.0.1 does not have it (404)" in sentence) == (Reason.NOT_FOUND, True)


@pytest.mark.parametrize(
    "hostile",
    [
        [a_tar(("../evil", b"x"))],
        [a_tar(("/evil", b"x"))],
        [a_tar(a_link("data/x", "../../../../etc/passwd"))],
        [a_tar(a_member("data/null", tarfile.CHRTYPE))],
        [a_tar(a_link("data", "/etc")), a_tar(("data/passwd", b"x"))],
    ],
    ids=["dots", "absolute", "link", "device", "link in a lower layer"],
)
async def test_hostile_layers(pull: Puller, hostile: list[bytes]) -> None:
    registry = FakeRegistry()
    registry.add_image("1.0", *map(gzip.compress, hostile))
    async with serving(registry.handle) as url:
        assert (await pull.refused(url))[0] == Reason.UNSAFE_ARCHIVE


async def test_limits_are_known_from_the_manifest(pull: Puller) -> None:
    registry = FakeRegistry()
    registry.add_image("1.0", LAYER)
    async with serving(registry.handle) as url:
        reason, sentence = await pull.refused(url, limits=replace(LIMITS, bytes=1_000_000))
        assert (reason, "at most 976.6 KiB are allowed" in sentence) == (Reason.TOO_LARGE, True)
        assert not any("/blobs/" in path for path in registry.asked())
        members = gzip.compress(a_tar(*((f"data/{index}", b"") for index in range(101))))
        registry.add_image("1.0", members)
        assert (await pull.refused(url))[0] == Reason.TOO_MANY_FILES


@pytest.mark.parametrize(
    "manifest",
    [
        {"schemaVersion": 1, "fsLayers": []},
        {"config": {"mediaType": "x", "digest": "md5:1", "size": 1}, "layers": []},
        {"config": {"mediaType": "x", "digest": sha256(b""), "size": -1}, "layers": []},
        [],
    ],
)
async def test_what_is_no_image(pull: Puller, manifest: object) -> None:
    registry = FakeRegistry()
    registry.manifests["1.0"] = ("application/json", json.dumps(manifest).encode())
    async with serving(registry.handle) as url:
        assert (await pull.refused(url))[0] == Reason.UNSUPPORTED_FORMAT


async def test_a_layer_of_another_type(pull: Puller) -> None:
    registry = FakeRegistry()
    registry.add_image("1.0", LAYER, media_type=f"{OCI}.layer.v1.tar+gzip+encrypted")
    async with serving(registry.handle) as url:
        reason, sentence = await pull.refused(url)
    assert (reason, "tar+gzip+encrypted" in sentence) == (Reason.UNSUPPORTED_FORMAT, True)


async def test_without_and_with_wrong_and_right_logins(pull: Puller) -> None:
    registry = FakeRegistry(users={"me": "se:cret"}, anonymous=True)
    registry.add_image("1.0", LAYER)
    async with serving(registry.handle) as url:
        host = url.removeprefix("http://")
        reason, sentence = await pull.refused(url)
        assert (reason, "no pull secret has one" in sentence) == (Reason.UNAUTHORIZED, True)
        pull.login("wrong", host, "me", "guess-hunter2")
        reason, sentence = await pull.refused(url)
        assert (reason, "refused the login of wrong (401)" in sentence) == (Reason.UNAUTHORIZED, True)
        assert "hunter2" not in sentence
        pull.login("other", "elsewhere.example", "me", "se:cret")
        assert (await pull.refused(url))[0] == Reason.UNAUTHORIZED
        pull.login("right", host, "me", "se:cret")
        assert (await pull.refused(url, imagePullSecrets=["wrong"]))[0] == Reason.UNAUTHORIZED
        assert (await pull(url, imagePullSecrets=["wrong", "right"]))[0] == FILES


async def test_going_without_a_login_comes_first(pull: Puller) -> None:
    registry = FakeRegistry()
    registry.add_image("1.0", LAYER)
    async with serving(registry.handle) as url:
        pull.login("mine", url.removeprefix("http://"), "me", "se:cret")
        await pull(url)
    assert {authorization for _, _, authorization in registry.seen} == {""}


async def test_basic_logins(pull: Puller) -> None:
    registry = FakeRegistry()
    registry.add_image("1.0", LAYER)

    def fault(request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") == "Basic bWU6c2U6Y3JldA==":
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    registry.fault = fault
    async with serving(registry.handle) as url:
        pull.login("mine", url.removeprefix("http://"), "me", "se:cret")
        assert (await pull(url))[0] == FILES


async def test_a_token_that_expires_in_the_middle(pull: Puller) -> None:
    registry = FakeRegistry(users={"me": "se:cret"}, break_after=1_500_000)
    registry.add_image("1.0", LAYER)

    expired: list[str] = []

    def fault(request: web.Request) -> None:
        if request.headers.get("Range") and not expired:
            expired.append(registry.tokens.pop())

    registry.fault = fault
    async with serving(registry.handle) as url:
        pull.login("mine", url.removeprefix("http://"), "me", "se:cret")
        assert (await pull(url))[0] == FILES
    assert registry.asked()["/token"] >= 3  # without a login, with it, and anew


async def test_credentials_stay_with_their_host(pull: Puller) -> None:
    registry = FakeRegistry(users={"me": "se:cret"})
    store = FakeRegistry(blobs=registry.blobs)
    registry.add_image("1.0", LAYER)
    async with serving(registry.handle) as url, serving(store.handle) as elsewhere:
        registry.blob_host = elsewhere
        pull.login("mine", url.removeprefix("http://"), "me", "se:cret")
        assert (await pull(url))[0] == FILES
    assert any(authorization for _, _, authorization in registry.seen)
    assert [authorization for _, _, authorization in store.seen] == [""]


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/x",
        "https://168.63.129.16/x",
        "http://10.0.0.1/x",
        "http://public.example/x",
        "file:///x",
    ],
)
async def test_blobs_are_not_fetched_from_everywhere(pull: Puller, target: str) -> None:
    registry = FakeRegistry()
    registry.add_image("1.0", LAYER)

    def fault(request: web.Request) -> web.Response | None:
        if "/blobs/" in request.path:
            return web.Response(status=307, headers={"Location": target})
        return None

    registry.fault = fault
    async with serving(registry.handle) as url:
        reason, sentence = await pull.refused(url, names=Names(public_example=[["93.184.215.14"]]))
    assert reason == Reason.URL_REFUSED, sentence


async def test_a_registry_elsewhere_must_speak_tls(pull: Puller) -> None:
    registry = FakeRegistry()
    registry.add_image("1.0", LAYER)
    async with serving(registry.handle) as url:
        names = Names(registry_example=[["127.0.0.1"]])
        host = f"registry.example:{url.rpartition(':')[2]}"
        limits = replace(LIMITS, attempts=1)
        # A public name must not lead to this machine either.
        assert (await pull.refused(f"http://{host}", names=names, limits=limits))[0] == Reason.URL_REFUSED
        stager = Stager(pull.cache, LIMITS, folder="data", allowed=("registry.example",), resolver=names)
        with await stager.stage(Source.parse({"image": f"{host}/team/adapter:1.0"})) as staged:
            assert (staged.path / "data/adapter_config.json").read_bytes() == CONFIG


async def test_one_pull_however_many_replicas_ask(pull: Puller) -> None:
    registry = FakeRegistry()
    registry.add_image("1.0", LAYER)
    async with serving(registry.handle) as url:
        found = await asyncio.gather(*(Puller(pull.root)(url) for _ in range(5)))
    assert all(files == FILES for files, _ in found)
    assert registry.asked()[f"/v2/team/adapter/blobs/{sha256(LAYER)}"] == 1
