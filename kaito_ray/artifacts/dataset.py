# SPDX-License-Identifier: Apache-2.0
"""A folder with training data in; a verdict with every problem and figure, and one clean parquet file, out.

    report = read_dataset(folder, work, wish=Wish(), limits=DATA, counter=counter, max_length=2048, target=file)

Called by tune_jobs before workers start and by `kaito-ray validate --data`, so that a data set is judged by the same
rules wherever that happens. The file has the columns that TRL reads: `prompt` and `completion`, of pairs `prompt`,
`chosen` and `rejected` (lists of messages, or texts for a model without a chat template), or `text`. Blocking; holds a
few hundred rows and a hash of each in memory.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from kaito_ray.artifacts.dataset_file import DataFile, find_data
from kaito_ray.artifacts.dataset_format import Layout, Wish, detect, read_sample
from kaito_ray.artifacts.dataset_length import Lengths, LengthTally
from kaito_ray.artifacts.dataset_row import read_rows
from kaito_ray.artifacts.dataset_sample import BadRow, Sample, Turn
from kaito_ray.artifacts.dataset_tokens import Counter
from kaito_ray.artifacts.dataset_writer import Writer
from kaito_ray.artifacts.limits import Limits
from kaito_ray.manifest import Finding, Severity

_BATCH = 256
_SHOWN = 20
"""Problems of one kind that are listed; the rest is counted."""
_STOP_AFTER = 1000
_FEW_ROWS = 10
_SAMPLES = 3
_SAMPLE_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of a data set."""

    layouts: tuple[str, ...]
    """The format of each file with its columns, without repetition."""
    conversational: bool
    rows: int
    duplicates: int
    digest: str
    """`sha256:` over what the rows teach, in their order: the same for the same data in another format."""
    lengths: Lengths | None
    samples: tuple[str, ...]
    """The first few, as people read them."""
    findings: tuple[Finding, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What keeps the data from being used."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def summary(self) -> tuple[str, ...]:
        """A few sentences for people."""
        said = [f"{_rows(self.rows)} of {' and '.join(self.layouts) or 'nothing'}"]
        if self.lengths is not None:
            said += self.lengths.summary()
        if self.duplicates:
            said.append(f"{self.duplicates:,} rows ({self.duplicates / self.rows:.0%}) repeat an earlier one")
        return tuple(said)


def read_dataset(
    folder: Path,
    work: Path,
    *,
    wish: Wish,
    limits: Limits,
    counter: Counter,
    max_length: int,
    splits: bool = False,
    pairs: bool = False,
    path: str = "",
    extension: str = "",
    target: Path | None = None,
) -> Report:
    """Read everything once; `target` is written when the report has no errors.

    Rows beyond `max_length` tokens are cut off there, unless `splits` says that what is cut off becomes a row. With
    `pairs` rows teach to prefer one answer to another, else to give one.
    """
    files, findings = find_data(folder, work, limits, path=path, extension=extension)
    reading = _Reading(counter, max_length, splits=splits, pairs=pairs)
    reading.findings += findings
    writer = Writer(work / "rows.parquet", chats=counter.chats) if target is not None else None
    try:
        for batch in _batches(reading.samples_of(files, wish, limits)):
            kept = reading.judge(batch)
            if writer is not None:
                writer.write(kept)
    finally:
        if writer is not None:
            writer.close()
    report = reading.report(bool(files))
    if target is not None and writer is not None and not report.errors:
        writer.path.replace(target)
    return report


@dataclass(slots=True)
class _Placed:
    file: str
    line: int
    sample: Sample


def _batches(samples: Iterator[_Placed]) -> Iterator[list[_Placed]]:
    while batch := list(islice(samples, _BATCH)):
        yield batch


@dataclass(slots=True)
class _Reading:
    """Judges rows as they come and adds up what is said about all of them."""

    counter: Counter
    max_length: int
    splits: bool = False
    pairs: bool = False
    findings: list[Finding] = field(default_factory=list)
    _errors: int = 0
    _rows: int = 0
    _ties: int = 0
    _first_tie: tuple[str, int] = ("", 0)
    _open_ends: int = 0
    _first_open_end: tuple[str, int] = ("", 0)
    _duplicates: int = 0
    _first_duplicate: tuple[str, int] = ("", 0)
    _kinds: dict[bool, str] = field(default_factory=dict)
    _layouts: list[str] = field(default_factory=list)
    _seen: set[bytes] = field(default_factory=set)
    _digest: Any = field(default_factory=hashlib.sha256)
    _samples: list[str] = field(default_factory=list)
    _tally: LengthTally = field(default_factory=LengthTally)

    def samples_of(self, files: Sequence[DataFile], wish: Wish, limits: Limits) -> Iterator[_Placed]:
        """Every row that can be learned from; the others become findings."""
        for file in files:
            layout: Layout | None = None
            empty = True
            for row in read_rows(file, limits):
                if isinstance(row, Finding):
                    self._say(row)
                    empty = empty and row.severity != "error"
                    continue
                empty = False
                if layout is None:
                    found = detect(list(row.values), wish, row.values, pairs=self.pairs)
                    if isinstance(found, str):
                        self._error(file.name, row.line, "", found)
                        break
                    layout = found
                    self._note_layout(file, layout)
                try:
                    sample = read_sample(layout, row.values, pairs=self.pairs)
                except BadRow as bad:
                    self._error(file.name, row.line, bad.column, str(bad))
                else:
                    if sample.is_tie:
                        self._ties += 1
                        self._first_tie = self._first_tie if self._ties > 1 else (file.name, row.line)
                    else:
                        yield _Placed(file.name, row.line, sample)
                if self._errors >= _STOP_AFTER:
                    return
            if empty:
                self._error(file.name, 1, "", "has no rows")

    def judge(self, batch: list[_Placed]) -> list[Sample]:
        """Count the tokens of a batch, look for repetitions; the samples that can be trained on."""
        kept = []
        counts = self.counter.count([placed.sample for placed in batch])
        for placed, count in zip(batch, counts, strict=True):
            if count.trouble:
                self._error(placed.file, placed.line, "", count.trouble)
                continue
            self._rows += 1
            self._tally.add(count, self.max_length)
            key = placed.sample.key.encode()
            self._digest.update(key + b"\n")
            short = hashlib.sha256(key).digest()[:12]
            if short in self._seen:
                self._duplicates += 1
                self._first_duplicate = self._first_duplicate if self._duplicates > 1 else (placed.file, placed.line)
            self._seen.add(short)
            if placed.sample.ends_open:
                self._open_ends += 1
                self._first_open_end = self._first_open_end if self._open_ends > 1 else (placed.file, placed.line)
            if len(self._samples) < _SAMPLES:
                self._samples.append(_shown(placed.sample))
            kept.append(placed.sample)
        return kept

    def report(self, found_files: bool) -> Report:
        """The verdict, once everything was read."""
        hidden = self._errors - _SHOWN
        if hidden > 0:
            more = f"and {hidden:,} more problems like these" + (
                "; reading ended there" if self._errors >= _STOP_AFTER else ""
            )
            self.findings.append(Finding("the data", 1, "", more))
        lengths = self._tally.lengths(self.max_length, exact=self.counter.exact) if self._rows else None
        if found_files and not self._errors:
            self._judge_whole(lengths)
        return Report(
            layouts=tuple(self._layouts),
            conversational=True in self._kinds,
            rows=self._rows,
            duplicates=self._duplicates,
            digest=f"sha256:{self._digest.hexdigest()}",
            lengths=lengths,
            samples=tuple(self._samples),
            findings=tuple(self.findings),
        )

    def _judge_whole(self, lengths: Lengths | None) -> None:
        if self._ties:
            rest = f"left out are {_rows(self._ties)} like this" if self._rows else "as in every row"
            message = f"prefers nothing, since chosen and rejected are the same; {rest}"
            self._warn(*self._first_tie, message, "warning" if self._rows else "error")
        if lengths is None:
            return
        if lengths.lost == self._rows or (lengths.cut == self._rows and not self.splits):
            self.findings.append(
                Finding(
                    "the data", 1, "",
                    f"every row is longer than max_length, {self.max_length} tokens (the shortest has"
                    f" {lengths.shortest:,}); raise max_length or split the rows",
                    # A rule of thumb refuses nothing.
                    "error" if self.counter.exact else "warning",
                )
            )  # fmt: skip
        elif lengths.lost:
            message = (
                f"{lengths.lost:,} rows are left out: their prompt alone fills max_length, {self.max_length} tokens"
            )
            self._warn("the data", 1, message)
        if self._rows < _FEW_ROWS:
            self._warn("the data", 1, f"has {_rows(self._rows)}; a model can learn them by heart and little more")
        if self._duplicates:
            self._warn(*self._first_duplicate, f"repeats an earlier row, as {self._duplicates:,} rows do")
        if self._open_ends:
            message = f"ends with a message that is not the assistant's, as {self._open_ends:,} rows do"
            self._warn(*self._first_open_end, message)

    def _note_layout(self, file: DataFile, layout: Layout) -> None:
        if str(layout) not in self._layouts:
            self._layouts.append(str(layout))
        conversational = layout.format != "text"
        self._kinds.setdefault(conversational, file.name)
        if len(self._kinds) == 2:
            message = (
                f"is in the format {layout}, {self._kinds[not conversational]} is not;"
                " texts and conversations cannot be trained on together"
            )
            self._error(file.name, 1, "", message)
            self._kinds = {not conversational: self._kinds[not conversational]}

    def _say(self, finding: Finding) -> None:
        if finding.severity == "error":
            self._errors += 1
        if finding.severity != "error" or self._errors <= _SHOWN:
            self.findings.append(finding)

    def _error(self, file: str, line: int, column: str, message: str) -> None:
        self._say(Finding(file, line, column, message))

    def _warn(self, file: str, line: int, message: str, severity: Severity = "warning") -> None:
        self._say(Finding(file, line, "", message, severity))


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _shown(sample: Sample) -> str:
    if sample.text:
        return _cut(sample.text)
    pair: tuple[Turn, ...] = tuple(
        (name, " / ".join(content for _, content in side))
        for name, side in (("chosen", sample.answer), ("rejected", sample.rejected))
    )
    turns = (*sample.prompt, *(pair if sample.rejected else sample.answer))
    return " | ".join(f"{role}: {_cut(content)}" for role, content in turns)


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SAMPLE_CHARACTERS else f"{line[: _SAMPLE_CHARACTERS - 3]}..."
