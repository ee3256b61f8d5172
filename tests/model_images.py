# SPDX-License-Identifier: Apache-2.0
"""Small models for tests: a folder with random shards and their index, and its image in a FakeRegistry."""

import json
import os
import struct
from pathlib import Path
from typing import Any

from fake_registry import FakeRegistry
from kaito_ray.artifacts import manifest
from kaito_ray.artifacts.pack import Facts, Form, Packing

NAME = "org/model"
REVISION = "0123456789abcdef0123456789abcdef01234567"
FACTS = Facts(NAME, REVISION, "mit")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def a_shard(tensor: str, rows: int = 600) -> bytes:
    """A safetensors file with one tensor of random bytes, `rows` times 4 KiB."""
    header = json.dumps({tensor: {"dtype": "U8", "shape": [rows, 4096], "data_offsets": [0, rows * 4096]}}).encode()
    return struct.pack("<Q", len(header)) + header + os.urandom(rows * 4096)


def a_model(folder: Path, *, architecture: str = "Phi3ForCausalLM") -> Path:
    """A model of two shards of 2.4 MB."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (folder / "tokenizer.json").write_text("{}")
    for number, name in enumerate(SHARDS):
        (folder / name).write_bytes(a_shard(f"layer.{number}"))
    weight_map = {f"layer.{number}": name for number, name in enumerate(SHARDS)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Files by their paths below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put_model(registry: FakeRegistry, tag: str, folder: Path, form: Form = Form.IMAGE, facts: Facts = FACTS) -> str:
    """The image that `kaito-ray pack` makes of the folder; its digest."""
    packing = Packing.plan(folder, facts, form)
    layers = []
    for plan in packing.layers:
        raw = b"".join(part if isinstance(part, bytes) else part.read_bytes() for part in plan.parts)
        annotations = {"org.opencontainers.image.title": plan.title}
        if len(plan.files) == 1:
            annotations[manifest.FILE_PATH] = plan.files[0]
        layers.append({"mediaType": plan.media_type, **registry.add_blob(raw), "annotations": annotations})
    return registry.add_image(tag, layers=layers, annotations=dict(packing.annotations))


def put_files(registry: FakeRegistry, tag: str, files: dict[str, bytes], **changes: Any) -> str:
    """An image of plain files under their titles, as oras pushes them."""
    layers = [
        {
            "mediaType": manifest.MODEL_WEIGHT,
            **registry.add_blob(raw),
            "annotations": {"org.opencontainers.image.title": name},
        }
        for name, raw in files.items()
    ]
    return registry.add_image(tag, layers=layers, **changes)
