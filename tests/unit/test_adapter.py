# SPDX-License-Identifier: Apache-2.0
"""An adapter in files in; what is known of it, or the sentence that refuses it."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapter_files import BASE_NAME, a_base, adapter_tensors, an_adapter
from kaito_ray.artifacts.adapter import check_adapter, find_adapter, write_adapter
from kaito_ray.artifacts.base import Base, read_base, tail
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.tensors import Tensor, scale
from kaito_ray.errors import AdapterRefused

Tensors = dict[str, "np.ndarray[Any, Any]"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return read_base(a_base(tmp_path_factory.mktemp("base")), [BASE_NAME, "tiny-base"])


def test_facts_of_a_good_adapter(tmp_path: Path, base: Base) -> None:
    facts = check_adapter(an_adapter(tmp_path, rank=16), base, max_rank=64)
    assert (facts.rank, facts.alpha, facts.base) == (16, 32.0, BASE_NAME)
    assert facts.target_modules == ("down_proj", "gate_up_proj", "o_proj", "qkv_proj")
    assert facts.size_bytes == (tmp_path / "adapter_model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("config", "reason", "words"),
    [
        ({"r": 128}, Reason.RANK_TOO_HIGH, "its rank is 128, this server takes up to 64"),
        ({"rank_pattern": {"qkv_proj": 96}}, Reason.RANK_TOO_HIGH, "its rank is 96, this server takes up to 64"),
        ({"modules_to_save": ["lm_head"]}, Reason.UNSUPPORTED_FEATURE, "modules_to_save: lm_head"),
        ({"use_dora": True}, Reason.UNSUPPORTED_FEATURE, "DoRA"),
        ({"bias": "all"}, Reason.UNSUPPORTED_FEATURE, "bias: all"),
        ({"init_lora_weights": "pissa"}, Reason.UNSUPPORTED_FEATURE, "init_lora_weights: pissa"),
        ({"alora_invocation_tokens": [1]}, Reason.UNSUPPORTED_FEATURE, "activated LoRA"),
        ({"layer_replication": [[0, 1]]}, Reason.UNSUPPORTED_FEATURE, "layer_replication"),
        ({"peft_type": "IA3"}, Reason.UNSUPPORTED_FEATURE, "type IA3"),
        ({"rank_pattern": {"(a+)+$": 8}}, Reason.UNSUPPORTED_FEATURE, "patterns must be names"),
        ({"target_modules": []}, Reason.INVALID_CONFIG, "target_modules is empty"),
        ({"target_modules": None}, Reason.INVALID_CONFIG, "target_modules is empty"),
        ({"r": 0}, Reason.INVALID_CONFIG, "r: input should be greater than or equal to 1, got '0'"),
        ({"r": "many"}, Reason.INVALID_CONFIG, "got 'many'"),
        ({"lora_alpha": None}, Reason.INVALID_CONFIG, "lora_alpha"),
        ({"lora_alpha": 0}, Reason.CHANGES_NOTHING, "lora_alpha is 0"),
        ({"r": 16}, Reason.CORRUPT_WEIGHTS, "has rank 8, adapter_config.json says 16"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_configurations_that_are_refused(
    tmp_path: Path, base: Base, config: dict[str, Any], reason: Reason, words: str
) -> None:
    with pytest.raises(AdapterRefused) as caught:
        check_adapter(an_adapter(tmp_path, tensors=adapter_tensors(rank=8), **config), base, max_rank=64)
    assert (caught.value.reason, words in str(caught.value)) == (reason, True), str(caught.value)


def _first(tensors: Tensors, part: str) -> str:
    return next(name for name in tensors if part in name)


def _nan(tensors: Tensors) -> None:
    tensors[_first(tensors, "lora_A")][3, 3] = np.nan


def _infinite_half(tensors: Tensors) -> None:
    name = _first(tensors, "lora_B")
    tensors[name] = tensors[name].astype(np.float16)
    tensors[name][0, 0] = -np.inf


def _zero(tensors: Tensors) -> None:
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = -np.zeros_like(tensors[name])


def _lonely(tensors: Tensors) -> None:
    del tensors[_first(tensors, "lora_B")]


def _transposed(tensors: Tensors) -> None:
    name = _first(tensors, "lora_B")
    tensors[name] = np.ascontiguousarray(tensors[name].T)


def _magnitude(tensors: Tensors) -> None:
    tensors["base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector"] = np.ones(32, np.float32)


def _another_module(tensors: Tensors) -> None:
    for part in "AB":
        tensors[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight"] = np.ones((8, 8), np.float32)


def _another_layer(tensors: Tensors) -> None:
    for part in "AB":
        name = f"base_model.model.model.layers.31.mlp.down_proj.lora_{part}.weight"
        tensors[name] = tensors[name.replace("31", "0")]


def _another_width(tensors: Tensors) -> None:
    tensors.clear()
    tensors.update(adapter_tensors(hidden=64))


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        (_nan, Reason.CORRUPT_WEIGHTS, "not finite"),
        (_infinite_half, Reason.CORRUPT_WEIGHTS, "not finite"),
        (_zero, Reason.CHANGES_NOTHING, "every lora_B is zero"),
        (_lonely, Reason.CORRUPT_WEIGHTS, "has lora_A alone"),
        (_transposed, Reason.CORRUPT_WEIGHTS, "do not multiply"),
        (_magnitude, Reason.UNSUPPORTED_FEATURE, "lora_magnitude_vector"),
        (_another_module, Reason.WRONG_MODULES, "targets q_proj, not among the layers of org/tiny-base: down_proj, "),
        (_another_layer, Reason.WRONG_BASE, "that has no layers.31.mlp.down_proj"),
        (_another_width, Reason.WRONG_BASE, "down_proj has 64 inputs and 32 outputs there, 64 and 64 in the adapter"),
        (dict.clear, Reason.CORRUPT_WEIGHTS, "no tensors"),
    ],
)
def test_weights_that_are_refused(
    tmp_path: Path, base: Base, change: Callable[[Any], None], reason: Reason, words: str
) -> None:
    tensors = adapter_tensors()
    change(tensors)
    with pytest.raises(AdapterRefused) as caught:
        check_adapter(an_adapter(tmp_path, tensors=tensors), base, max_rank=64)
    assert (caught.value.reason, words in str(caught.value)) == (reason, True), str(caught.value)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:100], lambda _: b"", lambda raw: raw + b"x"])
def test_damaged_files_are_refused(tmp_path: Path, base: Base, damage: Callable[[bytes], bytes]) -> None:
    weights = an_adapter(tmp_path) / "adapter_model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(AdapterRefused, match="damaged or cut short") as caught:
        check_adapter(tmp_path, base, max_rank=64)
    assert caught.value.reason == Reason.CORRUPT_WEIGHTS


def test_another_base_model_is_named(tmp_path: Path, base: Base) -> None:
    folder = an_adapter(tmp_path, tensors=adapter_tensors(hidden=64), base_model_name_or_path="other/llama-7b")
    with pytest.raises(AdapterRefused, match=r"does not fit org/tiny-base: .*; it was made for other/llama-7b$"):
        check_adapter(folder, base, max_rank=64)


def test_another_name_with_the_same_shapes_is_fine(tmp_path: Path, base: Base) -> None:
    folder = an_adapter(tmp_path, base_model_name_or_path="/mnt/models/finetune-of-tiny")
    assert check_adapter(folder, base, max_rank=8).rank == 8


def test_without_weights_of_the_base_its_name_decides(tmp_path: Path) -> None:
    known = Base(frozenset({BASE_NAME}))
    assert check_adapter(an_adapter(tmp_path / "a"), known, max_rank=8).rank == 8
    folder = an_adapter(tmp_path / "b", base_model_name_or_path="other/llama-7b")
    with pytest.raises(AdapterRefused, match="other/llama-7b") as caught:
        check_adapter(folder, known, max_rank=8)
    assert caught.value.reason == Reason.WRONG_BASE


def test_embeddings_and_a_tied_output_layer(tmp_path: Path, base: Base) -> None:
    tensors = adapter_tensors() | {
        "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((8, 100), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_B": np.ones((32, 8), np.float32),
        "base_model.model.lm_head.lora_A.weight": np.ones((8, 32), np.float32),
        "base_model.model.lm_head.lora_B.weight": np.ones((100, 8), np.float32),
        "base_model.model.model.embed_tokens.base_layer.weight": np.ones((100, 32), np.float32),
    }
    facts = check_adapter(an_adapter(tmp_path, tensors=tensors), base, max_rank=8)
    assert {"embed_tokens", "lm_head"} <= set(facts.target_modules)


class Explosive:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(Path.cwd() / "pwned"),))


def test_a_pickle_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = an_adapter(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Explosive()))
    before = (folder / "adapter_model.bin").stat().st_atime_ns
    with pytest.raises(AdapterRefused, match=r"adapter_model\.bin, a pickle") as caught:
        find_adapter(folder)
    assert caught.value.reason == Reason.PICKLE
    assert (folder / "adapter_model.bin").stat().st_atime_ns == before
    assert not (tmp_path / "pwned").exists()


def test_the_adapter_is_found_where_archives_put_it(tmp_path: Path) -> None:
    inside = an_adapter(tmp_path / "one" / "my-adapter" / "data")
    assert find_adapter(tmp_path / "one") == inside
    top = an_adapter(tmp_path / "two")
    an_adapter(top / "checkpoint-100")
    assert find_adapter(top) == top
    an_adapter(tmp_path / "three" / "a")
    an_adapter(tmp_path / "three" / "b")
    with pytest.raises(AdapterRefused, match="has several adapters, in a, b"):
        find_adapter(tmp_path / "three")


@pytest.mark.parametrize(
    ("names", "words"),
    [([], "has no files"), (["README.md"], "has README.md"), (["adapter_config.json"], "has adapter_config.json")],
)
def test_what_is_there_instead_is_said(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(AdapterRefused, match=words) as caught:
        find_adapter(tmp_path)
    assert caught.value.reason == Reason.NO_ADAPTER


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="there is no folder") as caught:
        find_adapter(tmp_path / "nowhere")
    assert caught.value.reason == Reason.PATH_NOT_FOUND


def test_strength_scales_every_b_and_nothing_else(tmp_path: Path) -> None:
    source = an_adapter(tmp_path / "source", alpha_pattern={"qkv_proj": 4})
    target = tmp_path / "target"
    target.mkdir()
    write_adapter(source, target, strength=0.25)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (source, target))
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values * (0.25 if "lora_B" in name else 1), rtol=1e-6)
    assert json.loads((target / "adapter_config.json").read_text())["alpha_pattern"] == {"qkv_proj": 4.0}


def test_full_strength_copies_no_weights(tmp_path: Path) -> None:
    source, target = an_adapter(tmp_path / "source"), tmp_path / "target"
    (source / "adapter_model.bin").write_bytes(b"pickle")
    target.mkdir()
    write_adapter(source, target)
    assert (target / "adapter_model.safetensors").samefile(source / "adapter_model.safetensors")
    assert {path.name for path in target.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert "some_field_of_a_later_peft" not in json.loads((target / "adapter_config.json").read_text())


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_strength_out_of_range(tmp_path: Path, strength: float) -> None:
    with pytest.raises(AdapterRefused, match="between 0 and 1") as caught:
        write_adapter(an_adapter(tmp_path / "source"), tmp_path, strength=strength)
    assert caught.value.reason == Reason.INVALID_STRENGTH


def test_bfloat16_rounds_to_the_nearest(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal(4096).astype(np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    path = tmp_path / "raw"
    path.write_bytes(bits.tobytes())
    scale(path, Tensor("BF16", (4096,), 0, bits.nbytes), 1 / 3)
    exact = (bits.astype(np.uint32) << 16).view(np.float32) / 3
    scaled = (np.frombuffer(path.read_bytes(), "<u2").astype(np.uint32) << 16).view(np.float32)
    # Half a unit in the last place of eight bits of mantissa.
    assert np.max(np.abs(scaled - exact) / np.abs(exact)) <= 2**-8


def test_halves_and_types_that_cannot_be_scaled(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(np.array([1.0, -2.0, 65504.0], np.float16).tobytes())
    scale(path, Tensor("F16", (3,), 0, 6), 0.5)
    assert np.frombuffer(path.read_bytes(), np.float16).tolist() == [0.5, -1.0, 32752.0]
    with pytest.raises(Exception, match="the adapter has F8_E4M3"):
        scale(path, Tensor("F8_E4M3", (6,), 0, 6), 0.5)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("model.layers.0.self_attn.qkv_proj", "layers.0.self_attn.qkv_proj"),
        ("language_model.model.layers.11.mlp.up_proj", "layers.11.mlp.up_proj"),
        ("transformer.h.3.attn.c_attn", "h.3.attn.c_attn"),
        ("model.embed_tokens", "embed_tokens"),
        ("lm_head", "lm_head"),
    ],
)
def test_tails(module: str, expected: str) -> None:
    assert tail(module) == expected


def test_a_base_in_shards_and_a_packed_one(tmp_path: Path) -> None:
    save_file({"model.layers.0.a.weight": np.zeros((2, 3), np.float32)}, tmp_path / "m-1.safetensors")
    save_file({"model.layers.0.b.qweight": np.zeros((2, 3), np.int32)}, tmp_path / "m-2.safetensors")
    shards = {"model.layers.0.a.weight": "m-1.safetensors", "model.layers.0.b.qweight": "m-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert read_base(tmp_path).layers == {"layers.0.a": frozenset({(2, 3)}), "layers.0.b": frozenset()}
