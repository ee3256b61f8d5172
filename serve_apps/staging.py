# SPDX-License-Identifier: Apache-2.0
"""The source of an adapter in; a folder that vLLM can load, named after its content, out.

serve_apps/adapters.py awaits `stage` before an adapter touches the engine. The staged folder holds the adapter's
configuration and its safetensors file and nothing else, so that no pickle beside them can be read. Its name carries
the digest of the content and the strength, because vLLM's prefix cache tells adapters apart by path.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "pytorch_model.bin")


class BadAdapter(Exception):
    """An adapter that will not be loaded, with the sentence for `GET /adapters`."""


@dataclass(frozen=True, slots=True)
class Staged:
    """An adapter ready to load."""

    path: Path
    digest: str
    """`sha256:` over configuration and weights as they came."""
    rank: int


async def stage(source: Mapping[str, Any], *, strength: float, cache: Path) -> Staged:
    """Fetch what `source` names and lay it out under `cache`; raises BadAdapter."""
    folder = await fetch(source)
    return await asyncio.to_thread(_lay_out, folder, strength, cache)


async def fetch(source: Mapping[str, Any]) -> Path:
    """The folder with the adapter's files, on this machine: `{"path": ...}` is one already, such as a volume."""
    if "path" in source:
        return Path(source["path"])
    kinds = ", ".join(sorted(source)) or "nothing"
    raise BadAdapter(f"this server reads adapters from a mounted folder (path), the source has {kinds}")


def _lay_out(folder: Path, strength: float, cache: Path) -> Staged:
    config_file, weights = folder / CONFIG, folder / WEIGHTS
    if not folder.is_dir():
        raise BadAdapter(f"there is no folder {folder}")
    if not weights.is_file():
        pickled = next((name for name in _PICKLES if (folder / name).exists()), None)
        reason = f": {pickled} is a pickle, which can run code, and is not read" if pickled else ""
        raise BadAdapter(f"{folder} has no {WEIGHTS}{reason}")
    try:
        text = config_file.read_bytes()
        config = json.loads(text)
        rank = int(config["r"])
        alpha = float(config["lora_alpha"])
    except OSError as error:
        raise BadAdapter(f"{CONFIG} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadAdapter(f"{CONFIG} is not the configuration of a LoRA adapter: {error!r}") from None
    digest = hashlib.sha256(text)
    with weights.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    target = cache / f"{digest.hexdigest()}-{strength:g}"
    target.mkdir(parents=True, exist_ok=True)
    # The update of a layer is lora_alpha / r * B A (or / sqrt(r)), so scaling alpha scales B.
    (target / CONFIG).write_text(json.dumps({**config, "lora_alpha": alpha * strength}))
    link = target / WEIGHTS
    if link.is_symlink():
        link.unlink()
    link.symlink_to(weights.resolve())
    return Staged(target, f"sha256:{digest.hexdigest()}", rank)
