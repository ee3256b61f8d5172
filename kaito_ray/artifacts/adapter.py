# SPDX-License-Identifier: Apache-2.0
"""A folder with a LoRA adapter becomes facts, or a refusal in words, before anything of it reaches the engine.

Called by serve_apps (what to load) and tune_jobs (what was made). An engine that meets an adapter it cannot use may
fail a request, or itself; everything that can be known from the configuration and the weights is therefore known
here. Blocking, called in a thread; reads a file once.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kaito_ray.artifacts.adapter_config import CONFIG, AdapterConfig, check_features, read_config, unsupported
from kaito_ray.artifacts.base import Base, Shape, tail
from kaito_ray.artifacts.reason import Reason
from kaito_ray.artifacts.tensors import Tensor, is_finite, is_zero, read_header, scale
from kaito_ray.errors import AdapterRefused, ArtifactRefused

WEIGHTS = "adapter_model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_MAX_DEPTH = 3
_WEIGHT = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?:lora_(?P<part>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))"
)
# Copies of the base's own embeddings, which peft saves beside an adapter and vLLM skips.
_IGNORED = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """An adapter that can be loaded."""

    rank: int
    """The highest of its modules."""
    alpha: float
    target_modules: tuple[str, ...]
    """Last names of the modules that it really changes."""
    size_bytes: int
    base: str
    """What it says it was made for; may be empty or a path."""


def find_adapter(folder: Path) -> Path:
    """The folder with the adapter at or below `folder`: an archive often has one folder around everything.

    The highest one counts, since training leaves checkpoints below its result. Only names are looked at. Raises
    AdapterRefused when there is none, or only a pickle.
    """
    if not folder.is_dir():
        raise AdapterRefused(f"there is no folder {folder}", reason=Reason.PATH_NOT_FOUND)
    files = list(_files(folder))
    names = [str(path.relative_to(folder)) for path in files]
    homes = {path.parent for path in files if path.name == CONFIG} & {p.parent for p in files if p.name == WEIGHTS}
    highest = min((len(home.parts) for home in homes), default=0)
    found = [home for home in homes if len(home.parts) == highest]
    if len(found) == 1:
        return found[0]
    if found:
        places = _listed(sorted(str(home.relative_to(folder)) for home in found))
        raise AdapterRefused(f"has several adapters, in {places}; one is needed", reason=Reason.NO_ADAPTER)
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles and not any(path.name == WEIGHTS for path in files):
        raise AdapterRefused(
            f"has its weights in {_listed(pickles)}, a pickle, which can run code and is not read;"
            f" save them as {WEIGHTS}",
            reason=Reason.PICKLE,
        )
    raise AdapterRefused(f"needs {CONFIG} and {WEIGHTS}, has {_listed(names) or 'no files'}", reason=Reason.NO_ADAPTER)


def check_adapter(folder: Path, base: Base, *, max_rank: int) -> AdapterFacts:
    """Judge the adapter in `folder` for `base`; raises AdapterRefused with the value seen and the value allowed."""
    config = read_config(folder / CONFIG)
    check_features(config, max_rank)
    weights = folder / WEIGHTS
    try:
        tensors = read_header(weights)
    except ArtifactRefused as error:
        raise AdapterRefused(str(error), reason=error.reason) from None
    pairs = _pairs(tensors)
    for module, (a, b) in pairs.items():
        _check_ranks(module, a, b, config, max_rank)
    _check_base(pairs, config, base)
    for name, tensor in tensors.items():
        if not is_finite(weights, tensor):
            raise AdapterRefused(
                f"{name} has values that are not finite (NaN or infinity)", reason=Reason.CORRUPT_WEIGHTS
            )
    if config.lora_alpha == 0 and not config.alpha_pattern:
        raise AdapterRefused("changes nothing: its lora_alpha is 0", reason=Reason.CHANGES_NOTHING)
    if all(is_zero(weights, b) for _, b in pairs.values()):
        raise AdapterRefused("changes nothing: every lora_B is zero, as before training", reason=Reason.CHANGES_NOTHING)
    return AdapterFacts(
        rank=max(config.ranks),
        alpha=config.lora_alpha,
        target_modules=tuple(sorted({module.rpartition(".")[2] for module in pairs})),
        size_bytes=weights.stat().st_size,
        base=config.base_model_name_or_path or "",
    )


def write_adapter(folder: Path, target: Path, *, strength: float = 1.0) -> None:
    """Lay the adapter out in `target` for the engine: the fields that were checked, the weights, nothing else.

    The update of a layer is a multiple of B A, so scaling every lora_B by `strength` scales the adapter, whatever
    its ranks and alphas are. Unscaled weights become another name of the same file.
    """
    if not 0 <= strength <= 1:
        raise AdapterRefused(f"strength must be between 0 and 1, got {strength:g}", reason=Reason.INVALID_STRENGTH)
    config = read_config(folder / CONFIG)
    (target / CONFIG).write_text(config.model_dump_json(indent=1))
    weights, ours = folder / WEIGHTS, target / WEIGHTS
    if strength == 1.0:
        ours.hardlink_to(weights)
        return
    shutil.copyfile(weights, ours)
    for name, tensor in read_header(ours).items():
        match = _WEIGHT.fullmatch(name)
        if match and (match["part"] or match["embedding"]) == "B":
            scale(ours, tensor, strength)


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every module; refuses tensors that are neither."""
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.endswith(_IGNORED):
            continue
        match = _WEIGHT.fullmatch(name)
        if match is None:
            raise unsupported(f"has the tensor {name[:120]}, which is no lora_A or lora_B weight")
        halves.setdefault(match["module"], {})[match["part"] or match["embedding"]] = tensor
    for module, half in halves.items():
        if len(half) != 2:
            raise AdapterRefused(f"{module} has lora_{next(iter(half))} alone", reason=Reason.CORRUPT_WEIGHTS)
    if not halves:
        raise AdapterRefused(f"{WEIGHTS} has no tensors", reason=Reason.CORRUPT_WEIGHTS)
    return {module: (half["A"], half["B"]) for module, half in halves.items()}


def _check_ranks(module: str, a: Tensor, b: Tensor, config: AdapterConfig, max_rank: int) -> None:
    if ".experts" in module:
        return  # experts are stacked into one tensor in ways that differ between models
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise AdapterRefused(
            f"{module}: lora_A {_shape(a)} and lora_B {_shape(b)} do not multiply", reason=Reason.CORRUPT_WEIGHTS
        )
    if a.shape[0] > max_rank:
        raise AdapterRefused(
            f"the rank of {module} is {a.shape[0]}, this server takes up to {max_rank}", reason=Reason.RANK_TOO_HIGH
        )
    if a.shape[0] not in config.ranks:
        ranks = _listed(str(rank) for rank in sorted(config.ranks))
        raise AdapterRefused(f"{module} has rank {a.shape[0]}, {CONFIG} says {ranks}", reason=Reason.CORRUPT_WEIGHTS)


def _check_base(pairs: Mapping[str, tuple[Tensor, Tensor]], config: AdapterConfig, base: Base) -> None:
    """Whether every module is one of the base's layers, with its numbers of inputs and outputs."""
    made_for = config.base_model_name_or_path or ""
    origin = f"; it was made for {made_for}" if made_for and not base.is_called(made_for) else ""
    if not base.layers:
        if origin and base.names and re.fullmatch(r"[\w.-]+/[\w.-]+", made_for):
            raise AdapterRefused(f"does not fit {base.shown}{origin}", reason=Reason.WRONG_BASE)
        return
    known = {name.rpartition(".")[2] for name in base.layers}
    unknown = sorted({m.rpartition(".")[2] for m in pairs if ".experts" not in m} - known - {"lm_head"})
    if unknown:
        layers = {name.rpartition(".")[2] for name, shapes in base.layers.items() if shapes}
        raise AdapterRefused(
            f"targets {_listed(unknown)}, not among the layers of {base.shown}: {_listed(sorted(layers), 12)}{origin}",
            reason=Reason.WRONG_MODULES,
        )
    for module, (a, b) in pairs.items():
        if ".experts" in module:
            continue
        shapes = _shapes(module, base)
        if shapes is None:
            raise AdapterRefused(
                f"does not fit {base.shown}: that has no {tail(module)}{origin}", reason=Reason.WRONG_BASE
            )
        fits = {(b.shape[0], a.shape[1])}
        if shapes and not fits & shapes:
            (outs, ins), *_ = shapes
            raise AdapterRefused(
                f"does not fit {base.shown}: {tail(module)} has {ins} inputs and {outs} outputs there,"
                f" {a.shape[1]} and {b.shape[0]} in the adapter{origin}",
                reason=Reason.WRONG_BASE,
            )


def _shapes(module: str, base: Base) -> frozenset[Shape] | None:
    """The layer's shapes, None when there is no such layer; an output layer may be tied to the embeddings."""
    name = tail(module)
    shapes = base.layers.get(name)
    if shapes is None and name == "lm_head":
        shapes = base.layers.get("embed_tokens")
    if shapes and name == "embed_tokens":
        # An embedding looks its inputs up in rows, so its weight lies the other way round.
        return frozenset((ins, outs) for outs, ins in shapes)
    return shapes


def _files(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Files below `folder`, a few folders deep, without hidden folders and links to folders."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            if depth < _MAX_DEPTH and not entry.name.startswith("."):
                yield from _files(Path(entry.path), depth + 1)
        elif entry.is_file():
            yield Path(entry.path)


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _listed(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
