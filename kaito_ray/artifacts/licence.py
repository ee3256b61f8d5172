# SPDX-License-Identifier: Apache-2.0
"""Whether a model's licence lets its files be passed on, as an image in a registry does.

Called by pack_command.py. Licences that ask for something beyond a notice (Llama's, Gemma's, NVIDIA's) may permit it
too; that is for the one who packs to judge, and to say.
"""

import re
from pathlib import Path

from kaito_ray.artifacts.reason import Reason
from kaito_ray.errors import ArtifactRefused

# By the identifiers that hub repositories use.
PERMISSIVE = frozenset(
    {
        "apache-2.0", "mit", "modified-mit", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc", "unlicense",
        "cc0-1.0", "cc-by-4.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "openmdw-1.0", "openmdw-1.1",
    }
)  # fmt: skip


def check_licence(name: str, licence: str, *, accepted: bool) -> None:
    """Refuse a licence that is not known to permit passing the model on, unless somebody said that it does."""
    if accepted or licence.lower() in PERMISSIVE:
        return
    if licence:
        raise ArtifactRefused(
            f"{name} has the licence {licence}, which does not simply permit passing the model on; read it, then say"
            f" --accept-license",
            reason=Reason.LICENSE_REFUSED,
        )
    raise ArtifactRefused(
        f"the licence of {name} is not known; say which it is with --license, or --accept-license",
        reason=Reason.LICENSE_REFUSED,
    )


def licence_of_card(folder: Path) -> str:
    """The licence that the model card (README.md) of a folder names in its head; empty when it names none."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    with card.open(encoding="utf-8", errors="replace") as file:
        head = file.read(64 * 1024)
    block = re.match(r"---\n(.*?)\n---", head, re.DOTALL)
    found = re.search(r"^license:[ \t]*[\"']?([\w.+-]+)", block[1], re.MULTILINE) if block else None
    return found[1] if found else ""
