# SPDX-License-Identifier: Apache-2.0
"""What vLLM's `--model` becomes, for each kind of source."""

from pathlib import Path

import pytest

from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused
from model_folder import a_model
from serve_apps.arguments import Model
from serve_apps.model import model_location


async def test_a_hub_id_is_left_to_vllm() -> None:
    assert await model_location(Model(kind="hub", reference="org/model", revision="abc")) == "org/model"


@pytest.mark.parametrize("inside", [".", "workspace/weights"])
async def test_a_folder_wherever_its_maker_put_the_model(tmp_path: Path, inside: str) -> None:
    home = a_model(tmp_path / inside)
    found = await model_location(Model(kind="path", reference=str(tmp_path), architecture="Phi3ForCausalLM"))
    assert Path(found) == home


async def test_a_folder_with_another_model(tmp_path: Path) -> None:
    a_model(tmp_path)
    with pytest.raises(
        ArtifactRefused, match=r"says Phi3ForCausalLM, the model asked for is a LlamaForCausalLM"
    ) as said:
        await model_location(Model(kind="path", reference=str(tmp_path), architecture="LlamaForCausalLM"))
    assert said.value.reason == Reason.WRONG_MODEL


async def test_a_shard_that_is_gone(tmp_path: Path) -> None:
    home = a_model(tmp_path, shards=3)
    (home / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ArtifactRefused, match="00002-of-00003") as said:
        await model_location(Model(kind="path", reference=str(tmp_path)))
    assert said.value.reason == Reason.SHARD_MISSING


async def test_what_is_served_is_not_evicted(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=2**20)

    async def produce(work: Path) -> Path:
        a_model(work / "tree")
        return work / "tree"

    with await cache.get("image-aa", produce) as entry:
        (tmp_path / "link").symlink_to(entry.path)
    await model_location(Model(kind="path", reference=str(tmp_path / "link")))
    with pytest.raises(ArtifactRefused) as said:
        await cache.make_room(2**20)
    assert said.value.reason == Reason.DISK_TOO_SMALL
    assert (tmp_path / "link" / "config.json").is_file()
