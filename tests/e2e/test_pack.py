# SPDX-License-Identifier: Apache-2.0
"""`kaito-ray pack` with a real registry, skopeo on the other side, and processes that are killed half-way."""

import asyncio
import hashlib
import io
import json
import os
import sys
import tarfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from docker_registry import PASSWORD, USER, DockerRegistry, a_docker_registry, skopeo
from fake_hub import LLAMA
from hub_files import COMMIT, HubFiles
from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.model import fetch_model, model_stager
from kaito_ray.artifacts.source import Source
from kaito_ray.names import MODEL_IMAGE_DIR
from model_images import SHARDS, a_model, a_shard, content
from web import serving

pytestmark = pytest.mark.e2e

_PUSH = ("--license", "mit", "--name", "org/model", "--revision", "0123abc")
_FETCH = """
import asyncio, sys
from pathlib import Path
from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.model import fetch_model, model_stager
from kaito_ray.artifacts.source import Source
print(asyncio.run(fetch_model(model_stager(Cache(Path(sys.argv[1]))), Source(image=sys.argv[2]))).path)
"""


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[DockerRegistry]:
    async with a_docker_registry(tmp_path / "registry") as running:
        yield running


async def kaito_ray(tmp_path: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the command; its code, stdout and stderr."""
    process = await started(tmp_path, *arguments, **environment)
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def started(tmp_path: Path, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
    """The command as a process that runs."""
    return await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("kaito-ray")),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)} | environment,
    )


async def packed(tmp_path: Path, folder: Path, image: str, *options: str) -> str:
    """Pack and push; the digest."""
    code, out, err = await kaito_ray(tmp_path, "pack", str(folder), "--to", image, *_PUSH, *options)
    assert code == 0, err
    name, _, digest = out.strip().partition("@")
    assert name == image
    return digest


async def manifest(image: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(await skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{image}"))
    return found


async def copied(image: str, target: Path) -> list[tuple[Path, str]]:
    """The layers as skopeo copies them, each with its title."""
    await skopeo("copy", "--src-tls-verify=false", f"docker://{image}", f"dir:{target}")
    layers = json.loads((target / "manifest.json").read_text())["layers"]
    return [
        (target / layer["digest"].partition(":")[2], layer["annotations"]["org.opencontainers.image.title"])
        for layer in layers
    ]


async def test_an_image_that_runtimes_and_skopeo_read(tmp_path: Path, registry: DockerRegistry) -> None:
    model, image = a_model(tmp_path / "model"), registry.image("team/model:1")
    digest = await packed(tmp_path, model, image)
    assert json.loads(await skopeo("inspect", "--tls-verify=false", f"docker://{image}"))["Digest"] == digest
    seen = await manifest(image)
    layers: list[dict[str, object]] = seen["layers"]  # type: ignore[assignment]
    assert [layer["mediaType"] for layer in layers] == ["application/vnd.oci.image.layer.v1.tar"] * 3
    assert seen["annotations"] == {
        "kaito-ray.io/parameters": str(2 * 600 * 4096),
        "org.opencontainers.image.licenses": "mit",
        "org.opencontainers.image.revision": "0123abc",
        "org.opencontainers.image.title": "org/model",
        "sh.kaito.model.name": "org/model",
    }
    shards = [layer["annotations"] for layer in layers[1:]]
    assert shards == [
        {
            "org.opencontainers.image.title": f"{name}.tar",
            "org.cncf.model.filepath": name,
            "kaito-ray.io/file-digest": f"sha256:{hashlib.sha256((model / name).read_bytes()).hexdigest()}",
        }
        for name in SHARDS
    ]
    # As a container runtime has it: every layer unpacked over the ones before.
    config = json.loads(await skopeo("inspect", "--config", "--tls-verify=false", f"docker://{image}"))
    root = tmp_path / "root"
    for (layer, _), diff_id in zip(await copied(image, tmp_path / "copied"), config["rootfs"]["diff_ids"], strict=True):
        assert diff_id == f"sha256:{hashlib.sha256(layer.read_bytes()).hexdigest()}"
        with tarfile.open(layer) as tar:
            assert {(entry.uid, entry.gid, entry.mtime) for entry in tar} == {(0, 0, 0)}
            tar.extractall(root, filter="data")
    assert content(root / MODEL_IMAGE_DIR) == content(model)


async def test_files_that_oras_pulls(tmp_path: Path, registry: DockerRegistry) -> None:
    """What `oras pull` does with an image: each layer into a file of its title."""
    model, image = a_model(tmp_path / "model"), registry.image("team/model:1")
    await packed(tmp_path, model, image, "--format", "modelpack")
    seen = await manifest(image)
    assert seen["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    pulled = {title: layer.read_bytes() for layer, title in await copied(image, tmp_path / "copied")}
    assert pulled == content(model)


async def test_the_same_model_is_the_same_image(tmp_path: Path, registry: DockerRegistry) -> None:
    one = a_model(tmp_path / "one")
    two = tmp_path / "two"
    two.mkdir()
    for path in sorted(one.iterdir(), reverse=True):
        (two / path.name).write_bytes(path.read_bytes())
        os.utime(two / path.name, (0, 0))
    for form in ("image", "modelpack"):
        digests = [
            await packed(tmp_path, folder, registry.image(f"team/{folder.name}:1"), "--format", form)
            for folder in (one, two)
        ]
        assert digests[0] == digests[1]


async def test_what_would_be_pushed(tmp_path: Path, registry: DockerRegistry) -> None:
    model, image = a_model(tmp_path / "model"), registry.image("team/model:1")
    code, out, _ = await kaito_ray(tmp_path, "pack", str(model), "--to", image, *_PUSH, "--dry-run", "-o", "json")
    assert code == 0
    told = json.loads(out)
    with pytest.raises(AssertionError, match="manifest unknown"):
        await manifest(image)
    await packed(tmp_path, model, image)
    layers: list[dict[str, object]] = (await manifest(image))["layers"]  # type: ignore[assignment]
    assert [layer["size"] for layer in layers] == [layer["size"] for layer in told["layers"]]
    assert told["bytes"] == sum(layer["size"] for layer in told["layers"])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubFiles]:
    model = a_model(tmp_path / "on-the-hub")
    (model / "config.json").write_text(json.dumps(LLAMA))
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    server = HubFiles(model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


async def test_a_model_of_the_hub(tmp_path: Path, registry: DockerRegistry, hub: HubFiles) -> None:
    image, endpoint = registry.image("team/model:1"), {"HF_ENDPOINT": hub.url}
    push = ("pack", "org/model", "--to", image, "--license", "mit", "-o", "json")
    code, out, err = await kaito_ray(tmp_path, *push, "--dry-run", **endpoint)
    assert code == 0, err
    told = json.loads(out)
    code, out, err = await kaito_ray(tmp_path, *push, **endpoint)
    assert code == 0, err
    did = json.loads(out)
    assert did["layers"] == told["layers"]
    assert did["annotations"]["org.opencontainers.image.revision"] == COMMIT
    assert did["annotations"]["org.opencontainers.image.source"] == "https://huggingface.co/org/model"
    fetched = await fetch_model(model_stager(Cache(tmp_path / "cache")), Source(image=image), names=["org/model"])
    (hub.folder / "pytorch_model.bin").unlink()
    assert content(fetched.path) == content(hub.folder)
    assert (fetched.digest, fetched.revision) == (did["digest"], COMMIT)


@pytest.mark.parametrize(
    ("card", "options", "words"),
    [
        ("---\nlicense: llama3.1\n---\n", (), "has the licence llama3.1, which does not simply permit"),
        ("# no licence", (), "is not known; say which it is with --license, or --accept-license"),
        ("---\nlicense: llama3.1\n---\n", ("--accept-license",), ""),
        ("---\nlicense: apache-2.0\n---\n", (), ""),
        ("# no licence", ("--license", "mit"), ""),
    ],
)
async def test_licences(tmp_path: Path, card: str, options: tuple[str, ...], words: str) -> None:
    model = a_model(tmp_path / "model")
    (model / "README.md").write_text(card)
    to = ("--to", "registry.example/team/model:1", "--dry-run")
    code, out, err = await kaito_ray(tmp_path, "pack", str(model), *to, *options)
    assert (code, words in err) == (1 if words else 0, True), err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("to", "words"),
    [
        (f"registry.example/team/model@sha256:{'0' * 64}", "a push goes to a tag"),
        ("registry.example/Team/Model:1", "is no image reference such as"),
        ("127.0.0.1:1/team/model:1", "127.0.0.1:1"),
    ],
)
async def test_places_that_cannot_be(tmp_path: Path, to: str, words: str) -> None:
    code, _, err = await kaito_ray(tmp_path, "pack", str(a_model(tmp_path / "model")), "--to", to, *_PUSH)
    assert (code, words in err, "Traceback" in err) == (1, True, False), err


async def test_what_no_engine_loads_is_not_packed(tmp_path: Path) -> None:
    model = a_model(tmp_path / "model")
    (model / SHARDS[1]).unlink()
    code, _, err = await kaito_ray(tmp_path, "pack", str(model), "--to", "127.0.0.1:1/team/model:1", *_PUSH)
    assert (code, f"{SHARDS[1]} of 2 shards is not there" in err) == (1, True), err


async def test_the_logins_of_this_machine(tmp_path: Path) -> None:
    model = a_model(tmp_path / "model")
    async with a_docker_registry(tmp_path / "registry", logins=True) as registry:
        image, docker = registry.image("team/model:1"), tmp_path / "docker"
        docker.mkdir()
        push = ("pack", str(model), "--to", image, *_PUSH)
        code, _, err = await kaito_ray(tmp_path, *push, DOCKER_CONFIG=str(docker))
        assert (code, "needs a login" in err) == (1, True), err
        for password, expected in (("hunter2", 1), (PASSWORD, 0)):
            auths = {"auths": {registry.host: {"username": USER, "password": password}}}
            (docker / "config.json").write_text(json.dumps(auths))
            code, _, err = await kaito_ray(tmp_path, *push, DOCKER_CONFIG=str(docker))
            assert (code, "hunter2" in err) == (expected, False), err
        helper = tmp_path / "bin/docker-credential-test"
        helper.parent.mkdir()
        helper.write_text(f'#!/bin/sh\necho \'{{"Username": "{USER}", "Secret": "{PASSWORD}"}}\'\n')
        helper.chmod(0o755)
        (docker / "config.json").write_text('{"credsStore": "test"}')
        path = f"{helper.parent}:{os.environ['PATH']}"
        code, _, err = await kaito_ray(tmp_path, *push, DOCKER_CONFIG=str(docker), PATH=path)
        assert code == 0, err


def through(
    registry: DockerRegistry, seen: list[web.Request], stop: Callable[[web.Request], bool]
) -> Callable[[web.Request], object]:
    """A proxy in front of the registry: notes each request, and breaks the connection where `stop` says."""

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        if stop(request):
            assert request.transport
            request.transport.close()
            return web.Response()
        headers = {name: value for name, value in request.headers.items() if name != "Host"}
        async with (
            ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                f"http://{registry.host}{request.rel_url}",
                headers=headers,
                data=io.BytesIO(await request.read()),
                allow_redirects=False,
            ) as answer,
        ):
            dropped = {"Transfer-Encoding", "Connection"}
            sent = {name: value for name, value in answer.headers.items() if name not in dropped}
            if "Location" in sent:
                sent["Location"] = sent["Location"].replace(registry.host, request.host)
            return web.Response(status=answer.status, headers=sent, body=await answer.read())

    return handle


async def test_a_push_goes_on_where_the_registry_stands(tmp_path: Path, registry: DockerRegistry) -> None:
    model = a_model(tmp_path / "model")
    (model / SHARDS[1]).write_bytes(a_shard("layer.1", rows=50_000))  # 205 MB, three pieces and a rest
    seen: list[web.Request] = []
    third = asyncio.Event()

    def stop(_: web.Request) -> bool:
        if not third.is_set() and sum(one.method == "PATCH" for one in seen) == 3:
            third.set()
            return True
        return False

    async with serving(through(registry, seen, stop)) as url:  # type: ignore[arg-type]
        image = f"{url.removeprefix('http://')}/team/model:1"
        pushing = await started(tmp_path, "pack", str(model), "--to", image, *_PUSH)
        await third.wait()
        pushing.kill()
        await pushing.communicate()
        seen.clear()
        await packed(tmp_path, model, image)
        ranges = [one.headers["Content-Range"] for one in seen if one.method == "PATCH"]
        assert ranges[0].startswith(f"{2 * 64 * 1024 * 1024}-"), ranges
        heads = [one for one in seen if one.method == "HEAD"]
        assert len(heads) >= 4
    fetched = await fetch_model(model_stager(Cache(tmp_path / "cache")), Source(image=registry.image("team/model:1")))
    assert content(fetched.path) == content(model)


async def test_a_fetch_that_is_killed_goes_on(tmp_path: Path, registry: DockerRegistry) -> None:
    model = a_model(tmp_path / "model")
    (model / SHARDS[1]).write_bytes(a_shard("layer.1", rows=20_000))  # 82 MB
    await packed(tmp_path, model, registry.image("team/model:1"))
    ranges: list[str] = []
    honest = asyncio.Event()

    async def half(request: web.Request) -> web.StreamResponse:
        if "/blobs/" not in request.path:
            return await through(registry, [], lambda _: False)(request)  # type: ignore[misc,no-any-return]
        ranges.append(request.headers.get("Range", ""))
        answer = web.StreamResponse()
        async with (
            ClientSession() as session,
            session.get(
                f"http://{registry.host}{request.rel_url}", headers={"Range": ranges[-1]} if ranges[-1] else {}
            ) as source,
        ):
            answer.set_status(source.status)
            answer.content_length = source.content_length
            if "Content-Range" in source.headers:
                answer.headers["Content-Range"] = source.headers["Content-Range"]
            await answer.prepare(request)
            sent = 0
            async for chunk in source.content.iter_any():
                await answer.write(chunk)
                sent += len(chunk)
                if sent > 40_000_000:
                    await honest.wait()
        return answer

    async with serving(half) as url:
        arguments = (
            sys.executable,
            "-c",
            _FETCH,
            str(tmp_path / "node"),
            f"{url.removeprefix('http://')}/team/model:1",
        )
        first = await asyncio.create_subprocess_exec(*arguments)
        while True:
            work = tmp_path / "node/work"
            here = sum(path.stat().st_size for path in work.rglob("*") if path.is_file()) if work.is_dir() else 0
            if here > 30_000_000:
                break
            assert first.returncode is None
            await asyncio.sleep(0.05)
        first.kill()
        await first.wait()
        assert not any((tmp_path / "node/entries").iterdir())
        honest.set()
        ranges.clear()
        second = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
        out, _ = await second.communicate()
    assert content(Path(out.decode().strip())) == content(model)
    starts = [int(one.removeprefix("bytes=").removesuffix("-")) for one in ranges if one]
    assert max(starts) > 25_000_000, ranges
