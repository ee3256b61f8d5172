# SPDX-License-Identifier: Apache-2.0
"""Finds and reads the fact files: presets/<family>/<model>.yaml and presets/skus.yaml.

Called by preset.py and sku.py. The folder is `KAITO_RAY_PRESETS_DIR` when set, else what the wheel carries, else the
checkout's own.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from kaito_ray.errors import InvalidManifest, Problem

# The C loader reads the whole catalogue in a few hundredths of a second, the Python one in half a second.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def presets_folder(override: Path | None = None) -> Path:
    """The folder with the fact files."""
    if override is not None:
        return override
    packaged = Path(str(files("kaito_ray") / "_presets"))
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent / "presets"


def read_facts(file: Path) -> Any:
    """The YAML value of one file; raises InvalidManifest naming the file."""
    try:
        return yaml.load(file.read_bytes(), Loader=_Loader)  # noqa: S506 - a safe loader, see above
    except (OSError, yaml.YAMLError) as error:
        raise InvalidManifest([Problem((str(file),), f"cannot be read: {' '.join(str(error).split())}")]) from None
