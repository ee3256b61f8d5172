# SPDX-License-Identifier: Apache-2.0
"""Folders that hold a model, as the hub has them: small, whole, and of a shape that nothing can run."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ARCHITECTURE = "Phi3ForCausalLM"


def a_model(folder: Path, *, shards: int = 1, shard_bytes: int = 4096, seed: int = 0) -> Path:
    """config.json, a tokenizer and random weights; several shards come with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    (folder / "config.json").write_text(json.dumps({"architectures": [ARCHITECTURE]}))
    (folder / "tokenizer.json").write_text("{}")
    placed = {}
    for number in range(1, shards + 1):
        name = "model.safetensors" if shards == 1 else f"model-{number:05}-of-{shards:05}.safetensors"
        tensor = f"model.layers.{number - 1}.mlp.down_proj.weight"
        save_file({tensor: random.integers(0, 255, (1, shard_bytes), np.uint8)}, folder / name)
        placed[tensor] = name
    if shards > 1:
        index = {"metadata": {"total_size": shards * shard_bytes}, "weight_map": placed}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
