# SPDX-License-Identifier: Apache-2.0
"""The data source of a job in, a judged parquet file on the job's storage out. Called before workers start.

What a pod fetched and judged is kept, so that a retry in another pod trains on the same rows even when its URL now
answers with others. A volume is read anew: it is at hand, and its owner may have mended it.
"""

import asyncio
import json
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kaito_ray.artifacts.cache import Cache
from kaito_ray.artifacts.dataset import Report, read_dataset
from kaito_ray.artifacts.dataset_format import Wish
from kaito_ray.artifacts.dataset_tokens import RoughCounter, TokenCounter
from kaito_ray.artifacts.limits import DATA, Limits
from kaito_ray.artifacts.source import Source, Stager
from kaito_ray.errors import ArtifactRefused
from kaito_ray.tuning_event import Data as DataEvent
from tune_jobs.arguments import Arguments
from tune_jobs.home import Home

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows that can be trained on."""

    file: Path
    rows: int
    digest: str
    tokens: int
    format: str
    summary: tuple[str, ...]
    warnings: tuple[str, ...]
    samples: tuple[str, ...]

    def event(self) -> DataEvent:
        """What is said of it."""
        return DataEvent(self.rows, self.format, self.tokens, self.summary, self.warnings, self.samples)


def prepare(
    arguments: Arguments,
    home: Home,
    tokenizer: Any | None,
    allowed: Collection[str],
    *,
    limits: Limits = DATA,
    spare_share: float = 0.0,
) -> Prepared:
    """Fetch and judge, or take what an earlier attempt has judged; lengths are guessed without a tokenizer.

    `limits` are those of fetching, which leaves `spare_share` of the disk free. Raises ArtifactRefused with every
    problem of the data, and what artifacts.source raises when it cannot be fetched.
    """
    note, rows = home.data / "report.json", home.data / "rows.parquet"
    source = Source.parse(arguments.data.source)
    if not source.path and note.is_file():
        known = json.loads(note.read_text())
        lists = {key: tuple(known[key]) for key in ("summary", "warnings", "samples")}
        return Prepared(rows, **known | lists)
    report = asyncio.run(_read(arguments, source, rows, tokenizer, allowed, limits, spare_share))
    if report.errors:
        shown = [str(finding) for finding in report.errors[:_SHOWN]]
        raise ArtifactRefused("; ".join(shown), reason="InvalidData")
    lengths = report.lengths
    prepared = Prepared(
        rows,
        rows=report.rows,
        digest=report.digest,
        tokens=lengths.total if lengths else 0,
        format=" and ".join(report.layouts),
        summary=(*report.summary(), *([lengths.bands()] if lengths else [])),
        warnings=tuple(str(finding) for finding in report.findings),
        samples=report.samples,
    )
    partial = note.with_suffix(".partial")
    partial.write_text(json.dumps({key: value for key, value in asdict(prepared).items() if key != "file"}))
    partial.replace(note)
    return prepared


async def _read(
    arguments: Arguments,
    source: Source,
    target: Path,
    tokenizer: Any | None,
    allowed: Collection[str],
    limits: Limits,
    spare_share: float,
) -> Report:
    data = arguments.data
    wish = Wish(data.format or "", data.messages_column or "", data.context_column or "", data.response_column or "")

    def read(folder: Path) -> Report:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="work-") as work:
            return read_dataset(
                folder,
                Path(work),
                wish=wish,
                limits=limits,
                counter=TokenCounter(tokenizer) if tokenizer is not None else RoughCounter(),
                max_length=arguments.training.get("max_length") or 2**31,
                splits=bool(arguments.training.get("packing"))
                and arguments.training.get("packing_strategy") in {"bfd_split", "wrapped"},
                pairs=arguments.method == "dpo",
                path=data.path,
                extension=data.extension,
                target=target,
            )

    if source.path:
        return await asyncio.to_thread(read, Path(source.path))
    stager = Stager(
        Cache(arguments.folders.cache / "artifacts", spare_share=spare_share),
        limits,
        allowed=allowed,
        auth_dir=arguments.folders.pull_auth,
        folder="data",
    )
    with await stager.stage(source) as staged:
        return await asyncio.to_thread(read, staged.path / "data" if source.image else staged.path)
