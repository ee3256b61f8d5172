# SPDX-License-Identifier: Apache-2.0
"""What an adapter must fit: the names and shapes of the base model's layers, read from its weight files' headers.

No list of architectures: whatever the files say is true. adapter.py compares with it. Blocking, a few milliseconds
per file.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kaito_ray.artifacts.tensors import read_header
from kaito_ray.errors import ArtifactRefused

# In these types a weight has the shape of its layer; packed ones (4 bits in bytes) do not.
_UNPACKED = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
Shape = tuple[int, int]
"""Values out and values in, as a weight is stored."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base model by its names and layers."""

    names: frozenset[str] = frozenset()
    """Everything it is called: hub id, preset, alias; the first names of messages."""
    layers: Mapping[str, frozenset[Shape]] = field(default_factory=dict)
    """By `tail` of the name; no shape where the weight is packed, several where a tail is not unique (two towers)."""

    @property
    def shown(self) -> str:
        """What messages call it."""
        return min(self.names, key=lambda name: ("/" not in name, name), default="the base model")

    def is_called(self, name: str) -> bool:
        """Whether `name` is one of its names, an organisation in front or not."""
        return name.rpartition("/")[2].lower() in {known.rpartition("/")[2].lower() for known in self.names}


def tail(module: str) -> str:
    """A module's name from the list it is in: `layers.0.self_attn.qkv_proj`.

    What stands before differs between the names in files, in transformers and in adapters.
    """
    match = re.search(r"(?:^|\.)([^.]+\.\d+\..+)$", module)
    return match[1] if match else module.rpartition(".")[2]


def read_base(folder: Path, names: Iterable[str] = ()) -> Base:
    """The layers of the model in `folder`; without any when it holds no safetensors with transformers' names."""
    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.is_file():
        files = set(json.loads(index.read_text())["weight_map"].values())
    layers: dict[str, set[Shape]] = {}
    for name in sorted(files):
        path = folder / name
        try:
            header = read_header(path) if path.is_file() else {}
        except ArtifactRefused:
            # Not an adapter's concern; the engine says what is wrong with its weights.
            continue
        for tensor_name, tensor in header.items():
            module, _, kind = tensor_name.rpartition(".")
            shapes = layers.setdefault(tail(module), set())
            if kind == "weight" and len(tensor.shape) == 2 and tensor.dtype in _UNPACKED:
                shapes.add((tensor.shape[0], tensor.shape[1]))
    return Base(frozenset(names), {name: frozenset(shapes) for name, shapes in layers.items()})
