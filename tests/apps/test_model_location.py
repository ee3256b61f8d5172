# SPDX-License-Identifier: Apache-2.0
"""What vLLM's `--model` becomes, for each kind of source."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from archives import a_tar
from fake_registry import FakeRegistry
from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.limits import Limits
from kaito_ray.artifacts.source import Stager
from kaito_ray.errors import CannotRun
from serve_apps.arguments import Model
from serve_apps.model import model_location
from web import serving

LIMITS = Limits(bytes=2**20, entries=100, seconds=20)


@pytest.fixture
def stager(tmp_path: Path) -> Stager:
    return Stager(Cache(tmp_path / "cache"), LIMITS)


async def from_image(stager: Stager, *files: tuple[str, bytes]) -> str:
    registry = FakeRegistry()
    registry.add_image("1.0", gzip.compress(a_tar(*files)))
    async with serving(registry.handle) as url:
        image = f"{url.removeprefix('http://')}/team/model:1.0"
        return await model_location(Model(kind="image", reference=image), stager)


@pytest.mark.parametrize(
    ("model", "location"),
    [
        ({"kind": "hub", "reference": "org/model", "revision": "abc"}, "org/model"),
        ({"kind": "path", "reference": "/models/mine"}, "/models/mine"),
    ],
)
async def test_what_vllm_finds_itself(stager: Stager, model: dict[str, Any], location: str) -> None:
    assert await model_location(Model(**model), stager) == location


@pytest.mark.parametrize("folder", ["", "weights/", "workspace/weights/phi/"])
async def test_an_image_wherever_its_maker_put_the_model(stager: Stager, folder: str) -> None:
    location = Path(
        await from_image(
            stager,
            ("etc/tool/config.json", b"{}"),
            (f"{folder}config.json", b"{}"),
            (f"{folder}model.safetensors", b"weights"),
        )
    )
    assert (location / "model.safetensors").read_bytes() == b"weights"


async def test_an_image_without_a_model(stager: Stager) -> None:
    with pytest.raises(CannotRun, match=r"team/model:1\.0 holds no model"):
        await from_image(stager, ("etc/config.json", b"{}"))
