# SPDX-License-Identifier: Apache-2.0
"""Which files a model consists of, and whether those of a folder are whole and belong together.

Called by model.py after a fetch and by pack.py before a push, so that an engine starts with what it can load or not at
all. Weights are safetensors only: a pickle can run code. Blocking; reads headers, a few milliseconds per shard.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.tensors import read_header
from kaito_ray.errors import ArtifactRefused

CONFIG = "config.json"
# Mistral's own form has its parameters there, and not always a config.json beside them.
_CONFIGS = {CONFIG, "params.json"}
INDEX = "model.safetensors.index.json"
SHARD = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Weights for other programs, and what hub repositories hold beside a model.
_OTHERS = (".gguf", ".ggml", ".onnx", ".onnx_data", ".h5", ".msgpack", ".tflite", ".ot", ".mlmodel", ".zip", ".tar")
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".mp4", ".pdf", ".ipynb")
# The vendor's own form of the same weights, left out by KAITO's packer too.
_FOLDERS = {"original", "metal", "onnx", "openvino"}
# Of images that hold a whole system beside the model, as KAITO's private ones of v1alpha1 did.
_SYSTEM = {
    "bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "media", "proc", "run", "sbin", "srv", "sys", "tmp",
    "usr", "var",
}  # fmt: skip
MODEL_NAME = "sh.kaito.model.name"
_MAX_DEPTH = 6


def is_wanted(name: str) -> bool:
    """Whether a file of that name belongs to what an engine loads: no pickles, hidden files or other formats."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and not part.startswith(".wh.") for part in path.parts)
    return not (hidden or path.parts[0] in _FOLDERS or name.lower().endswith((*PICKLES, *_OTHERS, *_PICTURES)))


def is_wanted_of_image(name: str) -> bool:
    """The same for a file of an image, where a whole operating system may stand around the model."""
    return PurePosixPath(name).parts[0] not in _SYSTEM and is_wanted(name)


def choose_for_transformers(names: Iterable[str]) -> list[str]:
    """The same for training: where the weights are there twice, in the form that transformers reads."""
    wanted = sorted(name for name in names if is_wanted(name))
    if any(PurePosixPath(name).match("model*.safetensors") for name in wanted):
        wanted = [name for name in wanted if not PurePosixPath(name).match("consolidated*.safetensors")]
    return wanted


def choose_files(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that are the model, sorted.

    Where the weights are there twice, whole and in Mistral's own form, the latter is taken, as KAITO does.
    """
    wanted = sorted(name for name in names if is_wanted(name))
    if any(PurePosixPath(name).match("consolidated*.safetensors") for name in wanted) and "params.json" in wanted:
        wanted = [name for name in wanted if name != INDEX and not PurePosixPath(name).match("model*.safetensors")]
    return wanted


def find_model(folder: Path, *, skipped: Sequence[str] = ()) -> Path:
    """The folder with the model at or below `folder`, wherever its maker put it; the highest one counts.

    `skipped` are files that were left out on the way here. Raises ArtifactRefused when there is no model.
    """
    if not folder.is_dir():
        raise ArtifactRefused(f"there is no folder {folder}", reason=Reason.PATH_NOT_FOUND)
    files = [path for path in folder.rglob("*") if path.is_file() and len(path.relative_to(folder).parts) <= _MAX_DEPTH]
    configs = sorted((path.parent for path in files if path.name in _CONFIGS), key=lambda home: len(home.parts))
    homes = {path.parent for path in files if path.name.endswith(SHARD)}
    for home in configs:
        if home in homes:
            return home
    names = sorted({*skipped, *(str(path.relative_to(folder)) for path in files)})
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles and not homes:
        raise ArtifactRefused(
            f"has its weights in {_listed(pickles)}, a pickle, which can run code and is not read; convert them to"
            f" safetensors",
            reason=Reason.PICKLE,
        )
    raise ArtifactRefused(
        f"holds no model: no folder in it has a {CONFIG} and *{SHARD}; it has {_listed(names) or 'no files'}",
        reason=Reason.NO_MODEL,
    )


def check_model(
    home: Path,
    *,
    names: Collection[str] = (),
    architecture: str = "",
    annotations: Mapping[str, str] | None = None,
) -> None:
    """Refuse shards that are missing, damaged or of another model than the index, and a model nobody asked for."""
    config = _read(home / CONFIG) if (home / CONFIG).is_file() else _read(home / "params.json")
    called = (annotations or {}).get(MODEL_NAME, "")
    if names and called and called.lower() not in {name.lower() for name in names}:
        raise ArtifactRefused(
            f"is the model {called}, not {min(names, key=lambda name: ('/' not in name, name))}",
            reason=Reason.WRONG_MODEL,
        )
    has = config.get("architectures") or []
    if architecture and has and architecture not in has:
        raise ArtifactRefused(
            f"{CONFIG} says {_listed(has)}, the model asked for is a {architecture}", reason=Reason.WRONG_MODEL
        )
    check_shards(home)


def check_shards(home: Path) -> int:
    """Compare the index with the shards; the number of parameters, as stored."""
    shards = {path.name: path for path in sorted(home.glob(f"*{SHARD}"))}
    index = home / INDEX
    placed: dict[str, set[str]] = {}
    if index.is_file():
        weight_map = _read(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ArtifactRefused(f"{INDEX} has no weight_map", reason=Reason.SHARD_MISMATCH)
        for tensor, shard in weight_map.items():
            placed.setdefault(str(shard), set()).add(str(tensor))
        if missing := sorted(placed.keys() - shards.keys()):
            raise ArtifactRefused(
                f"{_listed(missing)} of {len(placed)} shards is not there, though {INDEX} names it",
                reason=Reason.SHARD_MISSING,
            )
    elif numbered := sorted(name for name in shards if "-of-" in name):
        total = numbered[0].rpartition("-of-")[2].removesuffix(SHARD)
        if total.isdigit() and len(numbered) < int(total):
            raise ArtifactRefused(
                f"has {len(numbered)} of {int(total)} shards ({_listed(numbered)})", reason=Reason.SHARD_MISSING
            )
    parameters = 0
    for name in placed or shards:
        header = read_header(shards[name])
        if lost := sorted(placed.get(name, set()) - header.keys()):
            raise ArtifactRefused(
                f"{name} lacks {_listed(lost)}, which {INDEX} places there: the shards are of another model",
                reason=Reason.SHARD_MISMATCH,
            )
        parameters += sum(_elements(tensor.shape) for tensor in header.values())
    return parameters


def _elements(shape: Sequence[int]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        content = None
    if not isinstance(content, dict):
        raise ArtifactRefused(f"{path.name} is not a JSON object", reason=Reason.INVALID_MODEL_CONFIG)
    return content


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
