# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder hold training data, and what a row of them is. Called by dataset.py.

The first bytes of a file decide what it is, and its name only where they leave it open: what a URL called `train.json`
may be JSON Lines in gzip. dataset_row.py reads the rows.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kaito_ray.artifacts.archive import archive_kind, unpack
from kaito_ray.artifacts.layer import Unpacked
from kaito_ray.artifacts.limits import Limits
from kaito_ray.errors import ArtifactRefused
from kaito_ray.manifest import Finding

PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
BINARY = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow", b"FEA1": "feather"}
SUFFIXES = {
    "parquet": "parquet", "arrow": "arrow", "feather": "arrow", "json": "json", "jsonl": "jsonl", "ndjson": "jsonl",
    "csv": "csv", "tsv": "csv", "txt": "text",
}  # fmt: skip
_PACKED_SUFFIXES = {"gz", "zst", "zstd", "bz2", "xz"}
_ARCHIVE_SUFFIXES = {"zip", "tar", "tgz", ""}
# What the datasets library writes beside the data.
_ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_HELD_OUT = re.compile(r"(?:^|[^a-z])(?:test|validation|valid|val|eval|dev)(?:$|[^a-z])")
_TRAIN = re.compile(r"(?:^|[^a-z])train(?:$|[^a-z])")


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file and the name under which messages speak of it."""

    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row as its file has it."""

    file: str
    line: int
    values: Mapping[str, Any]


class Unreadable(Exception):
    """Nothing behind this line of the file can be read."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def find_data(
    folder: Path, work: Path, limits: Limits, *, path: str = "", extension: str = ""
) -> tuple[list[DataFile], list[Finding]]:
    """The files with data at or below `folder`, by name, and what is to say about the choice.

    Archives are unpacked below `work`. Where some files are named as training data, those named as test or validation
    data are left out. `path` and `extension` narrow the choice to a part of the folder and to one kind of file.
    """
    root = folder.resolve()
    start = (root / path).resolve() if path else root
    if not start.is_relative_to(root) or not start.exists():
        return [], [Finding(path or str(folder), 1, "", "there is no such file or folder in the data")]
    files = list(_files(root, start))
    for index, archive in enumerate([file for file in files if _is_archive(file)]):
        files.remove(archive)
        target = work / f"unpacked-{index}"
        target.mkdir(parents=True)
        try:
            unpack(archive.path, target, Unpacked(limits))
        except ArtifactRefused as error:
            return [], [Finding(archive.name, 1, "", str(error))]
        files += [DataFile(file.path, f"{archive.name}/{file.name}") for file in _files(target, target)]
    wanted = [file for file in files if _is_data(file, extension, explicit=start.is_file())]
    if not wanted:
        seen = ", ".join(sorted(file.name for file in files)[:5]) or "no files"
        kinds = extension or "parquet, json, jsonl, csv, tsv, arrow or txt"
        return [], [Finding(path or "the data", 1, "", f"holds no {kinds} file, only {seen}")]
    findings = []
    if any(_TRAIN.search(file.name.lower()) for file in wanted):
        held = [file for file in wanted if _HELD_OUT.search(file.name.lower()) and not _TRAIN.search(file.name.lower())]
        wanted = [file for file in wanted if file not in held]
        findings = [Finding(file.name, 1, "", "is not trained on, going by its name", "note") for file in held]
    return sorted(wanted, key=lambda file: file.name), findings


def _files(root: Path, start: Path) -> Iterator[DataFile]:
    """Every plain file at or below `start` that does not lead out of `root`, hidden ones left out."""
    candidates = [start] if start.is_file() else sorted(start.rglob("*"))
    for path in candidates:
        name = path.relative_to(root)
        if any(part.startswith(".") for part in name.parts) or not path.is_file():
            continue
        # Mounted ConfigMaps hold links to files in hidden folders of the volume.
        if path.resolve().is_relative_to(root):
            yield DataFile(path, str(name))


def _is_archive(file: DataFile) -> bool:
    return suffixes(file.name)[0] in {*_ARCHIVE_SUFFIXES, *SUFFIXES} and archive_kind(file.path) is not None


def suffixes(name: str) -> tuple[str, bool]:
    """The suffix that tells the kind, in lower case, and whether one of a packer stood behind it."""
    parts = PurePosixPath(name.lower()).suffixes
    last = parts[-1][1:] if parts else ""
    if last in _PACKED_SUFFIXES:
        return (parts[-2][1:] if len(parts) > 1 else ""), True
    return last, False


def _is_data(file: DataFile, extension: str, *, explicit: bool) -> bool:
    suffix, packed = suffixes(file.name)
    if extension:
        # KAITO's `json` stands for JSON Lines as well.
        return SUFFIXES.get(suffix, suffix).startswith(SUFFIXES.get(extension.lower().lstrip("."), extension.lower()))
    if explicit:
        return True
    if PurePosixPath(file.name).name in _ABOUT or PurePosixPath(file.name).stem.lower() in {"readme", "license"}:
        return False
    if suffix in SUFFIXES:
        return True
    if packed or not suffix:  # a download without a name of its own
        with file.path.open("rb") as raw:
            head = raw.read(8)
        return any(head.startswith(magic) for magic in (*PACKED, *BINARY)) or head.lstrip()[:1] in {b"{", b"["}
    return False
