# SPDX-License-Identifier: Apache-2.0
"""safetensors files: their headers checked by the library, their bytes looked at piece by piece.

The library's own readers make tensors of some framework; an adapter is judged and scaled without one, so that a file
of any size passes through a few megabytes of memory. Blocking; called by adapter.py and base.py.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused

if TYPE_CHECKING:
    import numpy as np

_STEP = 8 * 1024 * 1024
# Bits of the exponent, all set in an infinity or NaN, and all bits but the sign, by dtype and width in bytes.
_EXPONENT = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "BF16": 0xFF << 7, "F16": 0x1F << 10}
_WIDTH = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies in its file: `offset` and `size` in bytes from its start."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_header(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file; raises ArtifactRefused when it is damaged, cut short or no safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        # The library checks that offsets fit the shapes, leave no hole and end with the file.
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ArtifactRefused(f"{path.name} is damaged or cut short: {error}", reason=Reason.CORRUPT_WEIGHTS) from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    start = 8 + length
    return {
        name: Tensor(
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            offset=start + entry["data_offsets"][0],
            size=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def is_finite(path: Path, tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; types without those are finite."""
    mask = _EXPONENT.get(tensor.dtype)
    return mask is None or not any(bool(((bits & mask) == mask).any()) for bits in _bits(path, tensor, "r"))


def is_zero(path: Path, tensor: Tensor) -> bool:
    """Whether every value is zero, of either sign."""
    width = _WIDTH.get(tensor.dtype, 1)
    magnitude = (1 << (8 * width - 1)) - 1 if tensor.dtype in _WIDTH else 0xFF
    return not any(bool((bits & magnitude).any()) for bits in _bits(path, tensor, "r"))


def scale(path: Path, tensor: Tensor, factor: float) -> None:
    """Multiply the tensor in its file, computed in float32 (float64 as itself) and rounded to nearest even."""
    import numpy as np

    if tensor.dtype not in _WIDTH:
        raise ArtifactRefused(
            f"strength can be applied to {', '.join(_WIDTH)}, the adapter has {tensor.dtype}",
            reason=Reason.UNSUPPORTED_FEATURE,
        )
    for bits in _bits(path, tensor, "r+"):
        if tensor.dtype == "BF16":
            wide = (bits.astype(np.uint32) << 16).view(np.float32) * np.float32(factor)
            raw = wide.view(np.uint32)
            bits[:] = (raw + 0x7FFF + ((raw >> 16) & 1)) >> 16
        else:
            values = bits.view({"F16": np.float16, "F32": np.float32, "F64": np.float64}[tensor.dtype])
            wider = np.dtype(np.float64 if tensor.dtype == "F64" else np.float32)
            values[:] = np.multiply(values, factor, dtype=wider)


def _bits(path: Path, tensor: Tensor, mode: str) -> "Iterator[np.ndarray[Any, Any]]":
    """The tensor as unsigned integers of its width, in pieces."""
    import numpy as np

    if tensor.size == 0:
        return
    width = _WIDTH.get(tensor.dtype, 1)
    file = np.memmap(path, dtype=np.uint8, mode=mode, offset=tensor.offset, shape=(tensor.size,))  # type: ignore[call-overload]
    for start in range(0, tensor.size, _STEP):
        yield file[start : start + _STEP].view(f"<u{width}")
