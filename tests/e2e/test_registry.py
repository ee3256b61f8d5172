# SPDX-License-Identifier: Apache-2.0
"""Push and pull with a real registry, and with skopeo on the other side."""

import asyncio
import base64
import hashlib
import json
import os
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from aiohttp import ClientSession, web

from adapter_files import BASE_NAME, a_base, an_adapter
from builders import a_document
from docker_registry import PASSWORD, USER, DockerRegistry, a_docker_registry, skopeo
from kaito_ray.artifacts.base import read_base
from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.credential import Login
from kaito_ray.artifacts.limits import ADAPTER
from kaito_ray.artifacts.prepare import adapter_stager, prepare_adapter
from kaito_ray.artifacts.push import pack_adapter, push_image
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.reference import Reference
from kaito_ray.artifacts.registry import Registry
from kaito_ray.artifacts.source import Source
from kaito_ray.errors import ArtifactRefused, ArtifactUnavailable
from kaito_ray.local_workspace import load_workspace
from kaito_ray.settings import Settings
from web import serving

pytestmark = pytest.mark.e2e

LIMITS = replace(ADAPTER, seconds=30, attempts=3, idle_s=5)
LOGIN = Login(USER, PASSWORD, origin="push")
ANNOTATIONS = {"sh.kaito.model.name": "phi-3-mini-4k-instruct"}


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[DockerRegistry]:
    async with a_docker_registry(tmp_path / "registry") as running:
        yield running


async def push(folder: Path, image: str, *, logins: tuple[Login, ...] = (), **limits: float) -> str:
    work = folder.parent / f"{folder.name}-work"
    work.mkdir(exist_ok=True)
    config, layer = pack_adapter(folder, work)
    async with Registry(Reference.parse(image), replace(LIMITS, **limits), logins=logins) as client:  # type: ignore[arg-type]
        return await push_image(client, config, [layer], ANNOTATIONS)


async def test_skopeo_reads_what_we_push(tmp_path: Path, registry: DockerRegistry) -> None:
    adapter = an_adapter(tmp_path / "adapter")
    image = registry.image("team/adapter:1.0")
    digest = await push(adapter, image)
    seen = json.loads(await skopeo("inspect", "--tls-verify=false", f"docker://{image}"))
    assert seen["Digest"] == digest
    raw = json.loads(await skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{image}"))
    assert raw["annotations"] == ANNOTATIONS
    assert [layer["mediaType"] for layer in raw["layers"]] == ["application/vnd.oci.image.layer.v1.tar+gzip"]
    # As KAITO's puller does it: copy to a folder, untar every layer, take /data.
    copied = tmp_path / "copied"
    await skopeo("copy", "--src-tls-verify=false", f"docker://{image}", f"dir:{copied}")
    for layer in raw["layers"]:
        with tarfile.open(copied / layer["digest"].partition(":")[2]) as tar:
            tar.extractall(tmp_path / "untarred", filter="data")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "untarred/data" / name).read_bytes() == (adapter / name).read_bytes()
    config = json.loads(await skopeo("inspect", "--config", "--tls-verify=false", f"docker://{image}"))
    with tarfile.open(copied / raw["layers"][0]["digest"].partition(":")[2]) as tar:
        assert [member.name for member in tar] == ["data", "data/adapter_config.json", "data/adapter_model.safetensors"]
    assert len(config["rootfs"]["diff_ids"]) == 1


async def test_the_same_adapter_is_the_same_image(tmp_path: Path, registry: DockerRegistry) -> None:
    digests = []
    for name in ("one", "two"):
        folder = an_adapter(tmp_path / name)
        os.utime(folder / "adapter_config.json", (0, 0))
        digests.append(await push(folder, registry.image(f"team/{name}:1")))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("kind", ["oci", "v2s2", "zstd"])
async def test_we_read_what_skopeo_pushes(tmp_path: Path, registry: DockerRegistry, kind: str) -> None:
    if kind == "zstd":
        pytest.importorskip("backports.zstd", reason="backports.zstd is not installed")
    adapter = an_adapter(tmp_path / "adapter", rank=16)
    ours, theirs = registry.image("team/ours:1"), registry.image("team/theirs:1")
    await push(adapter, ours)
    form = ["--format", "oci", "--dest-compress-format", "zstd"] if kind == "zstd" else ["--format", kind]
    layout = f"oci:{tmp_path / 'layout'}:1" if kind == "zstd" else f"docker://{ours}"
    if kind == "zstd":
        # Recompression happens on the way out of a plain layout.
        await skopeo(
            "copy", "--src-tls-verify=false", "--dest-decompress", f"docker://{ours}", f"dir:{tmp_path / 'plain'}"
        )
        layout = f"dir:{tmp_path / 'plain'}"
    await skopeo("copy", "--src-tls-verify=false", "--dest-tls-verify=false", *form, layout, f"docker://{theirs}")
    stager = adapter_stager(Cache(tmp_path / "cache"), limits=LIMITS)
    base = read_base(a_base(tmp_path / "base"), [BASE_NAME])
    prepared = await prepare_adapter(stager, {"image": theirs}, base=base, max_rank=64)
    assert prepared.facts.rank == 16
    assert prepared.digest == json.loads(await skopeo("inspect", "--tls-verify=false", f"docker://{theirs}"))["Digest"]
    weights = "adapter_model.safetensors"
    assert (prepared.path / weights).read_bytes() == (adapter / weights).read_bytes()


async def test_logins(tmp_path: Path) -> None:
    adapter = an_adapter(tmp_path / "adapter")
    async with a_docker_registry(tmp_path / "registry", logins=True) as registry:
        image = registry.image("team/adapter:1")
        with pytest.raises(ArtifactRefused) as caught:
            await push(adapter, image)
        assert caught.value.reason == Reason.UNAUTHORIZED
        with pytest.raises(ArtifactRefused) as caught:
            await push(adapter, image, logins=(Login(USER, "hunter2", origin="registry-push"),))
        assert caught.value.reason == Reason.UNAUTHORIZED
        assert "refused the login of registry-push (401)" in str(caught.value)
        assert "hunter2" not in str(caught.value)
        digest = await push(adapter, image, logins=(LOGIN,))
        auth = tmp_path / "auth"
        auth.mkdir()
        config = {"auths": {registry.host: {"username": USER, "password": PASSWORD}}}
        (auth / "pull.json").write_text(json.dumps(config))
        stager = adapter_stager(Cache(tmp_path / "cache"), limits=LIMITS, auth_dir=auth)
        base = read_base(a_base(tmp_path / "base"), [BASE_NAME])
        prepared = await prepare_adapter(stager, {"image": image}, base=base, max_rank=8, strength=0.5)
        assert prepared.digest == digest


async def test_a_local_run_has_the_logins_of_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_docker_registry(tmp_path / "registry", logins=True) as registry:
        image = registry.image("team/adapter:1")
        digest = await push(an_adapter(tmp_path / "adapter"), image, logins=(LOGIN,))
        manifest = tmp_path / "workspace.yaml"
        adapter = {"source": {"name": "sql", "image": image, "imagePullSecrets": ["not-in-the-file"]}}
        inference = {"preset": {"name": "tiny-phi-3"}, "adapters": [adapter]}
        manifest.write_text(yaml.safe_dump(a_document(inference=inference)))
        base = read_base(a_base(tmp_path / "base"), [BASE_NAME])

        async def pull(name: str) -> str:
            """As the replica does it: with what the local run laid out for it."""
            folder = tmp_path / name
            folder.mkdir()
            workspace = load_workspace(manifest, Settings(allow_private_urls=("127.0.0.1",)))
            stager = adapter_stager(
                Cache(folder / "cache"), limits=LIMITS, auth_dir=Path(workspace.write_logins(folder))
            )
            return (await prepare_adapter(stager, workspace.plan.adapters[0].source, base=base, max_rank=64)).digest

        docker = tmp_path / "docker"
        docker.mkdir()
        monkeypatch.setenv("DOCKER_CONFIG", str(docker))
        with pytest.raises(ArtifactRefused) as caught:
            await pull("without")
        assert caught.value.reason == Reason.UNAUTHORIZED
        secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (docker / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": secret}}}))
        assert await pull("with") == digest


async def test_a_missing_tag(tmp_path: Path, registry: DockerRegistry) -> None:
    await push(an_adapter(tmp_path / "adapter"), registry.image("team/adapter:1"))
    stager = adapter_stager(Cache(tmp_path / "cache"), limits=LIMITS)
    base = read_base(a_base(tmp_path / "base"))
    for image in (registry.image("team/adapter:2"), registry.image("team/nothing:1")):
        with pytest.raises(ArtifactRefused, match=r"does not have it \(404\)") as caught:
            await prepare_adapter(stager, {"image": image}, base=base, max_rank=8)
        assert caught.value.reason == Reason.NOT_FOUND


async def test_a_push_waits_for_the_registry(tmp_path: Path) -> None:
    adapter = an_adapter(tmp_path / "adapter")
    async with a_docker_registry(tmp_path / "registry") as registry:
        image = registry.image("team/adapter:1")
        await registry.stop()
        config, layer = await asyncio.to_thread(pack_adapter, adapter, tmp_path)
        heard: list[str] = []
        waits = asyncio.Event()

        def waiting(error: ArtifactUnavailable) -> None:
            heard.append(error.reason)
            waits.set()

        patient = replace(LIMITS, attempts=1_000_000, seconds=30)
        async with Registry(Reference.parse(image), patient) as client:
            pushing = asyncio.create_task(push_image(client, config, [layer], {}, waiting=waiting))
            await waits.wait()
            await registry.start()
            digest = await pushing
        assert set(heard) <= {Reason.CONNECTION_FAILED}
        assert json.loads(await skopeo("inspect", "--tls-verify=false", f"docker://{image}"))["Digest"] == digest


async def test_a_push_gives_up_after_its_time(tmp_path: Path) -> None:
    adapter = an_adapter(tmp_path / "adapter")
    with pytest.raises(ArtifactUnavailable) as caught:
        await push(adapter, "127.0.0.1:1/team/adapter:1", seconds=1.0, attempts=1000)
    assert caught.value.reason == Reason.CONNECTION_FAILED
    assert (adapter / "adapter_model.safetensors").exists()


async def test_pushing_again_sends_nothing_twice(tmp_path: Path, registry: DockerRegistry) -> None:
    adapter = an_adapter(tmp_path / "adapter")
    asked: list[str] = []
    async with serving(lambda request: through(request, registry, asked)) as url:
        image = f"{url.removeprefix('http://')}/team/adapter:1"
        first = await push(adapter, image)
        uploads = sum(method == "PUT" for method in asked)
        assert await push(adapter, image) == first
    assert (uploads, sum(method == "PUT" for method in asked)) == (3, 4)  # two blobs and a manifest; a manifest


async def through(
    request: web.Request, registry: DockerRegistry, asked: list[str], fault: "dict[str, int] | None" = None
) -> web.StreamResponse:
    """A proxy in front of the registry: notes each method, and answers with `fault[method]` once each."""
    asked.append(request.method)
    if fault and request.method in fault:
        return web.Response(status=fault.pop(request.method))
    headers = {name: value for name, value in request.headers.items() if name != "Host"}
    async with (
        ClientSession(auto_decompress=False) as session,
        session.request(
            request.method,
            f"http://{registry.host}{request.rel_url}",
            headers=headers,
            data=await request.read(),
            allow_redirects=False,
        ) as answer,
    ):
        body = await answer.read()
        kept = ("Content-Type", "Docker-Content-Digest", "Content-Range", "WWW-Authenticate")
        sent = {name: answer.headers[name] for name in kept if name in answer.headers}
        if "Location" in answer.headers:
            sent["Location"] = answer.headers["Location"].replace(registry.host, request.host)
        return web.Response(status=answer.status, headers=sent, body=body)


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT"])
async def test_a_registry_that_stumbles_during_a_push(tmp_path: Path, registry: DockerRegistry, method: str) -> None:
    asked: list[str] = []
    fault = {method: 503}
    async with serving(lambda request: through(request, registry, asked, fault)) as url:
        digest = await push(an_adapter(tmp_path / "adapter"), f"{url.removeprefix('http://')}/team/adapter:1")
    image = registry.image("team/adapter:1")
    assert json.loads(await skopeo("inspect", "--tls-verify=false", f"docker://{image}"))["Digest"] == digest
    assert not fault


async def test_a_large_image_and_its_digest(tmp_path: Path, registry: DockerRegistry) -> None:
    """100 MB there and back, as a check of the whole way rather than of its speed."""
    adapter = an_adapter(tmp_path / "adapter")
    with (adapter / "extra").open("wb") as file:
        file.write(os.urandom(1))
    weights = adapter / "adapter_model.safetensors"
    with weights.open("ab") as file:
        for _ in range(100):
            file.write(os.urandom(1_000_000))
    await push(adapter, registry.image("team/large:1"))
    stager = adapter_stager(Cache(tmp_path / "cache"), limits=LIMITS)
    with await stager.stage(Source.parse({"image": registry.image("team/large:1")})) as staged:
        with (staged.path / "data/adapter_model.safetensors").open("rb") as ours, weights.open("rb") as theirs:
            assert hashlib.file_digest(ours, "sha256").hexdigest() == hashlib.file_digest(theirs, "sha256").hexdigest()
        assert not (staged.path / "data/extra").exists()
