# SPDX-License-Identifier: Apache-2.0
"""Token counts of samples in, their distribution and what a limit on the length costs out. Pure; used by dataset.py."""

from collections import Counter as Tally
from collections.abc import Iterator
from dataclasses import dataclass, field

from kaito_ray.artifacts.dataset_tokens import Count

_BARS = 40


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of samples in tokens."""

    rows: int
    total: int
    """Tokens of one epoch, what is cut off left out; of pairs both sides, while the figures below are of the longer."""
    shortest: int
    median: int
    high: int
    """19 of 20 samples are at most this long."""
    longest: int
    max_length: int
    cut: int
    """Samples that are longer than `max_length`, and lose their end."""
    lost: int
    """Samples of which nothing is left to learn, because the prompt alone is too long."""
    exact: bool
    pairs: bool
    histogram: tuple[tuple[int, int], ...]
    """Upper bounds, each twice the one before, and how many samples lie up to it and above the one before."""

    def summary(self) -> tuple[str, ...]:
        """Sentences for people."""
        about = "" if self.exact else "about "
        spread = f"half of them at most {self.median:,}, 95 % at most {self.high:,}"
        rows = "the longer sides of rows have" if self.pairs else "rows have"
        said = [f"{about}{self.total:,} tokens; {rows} {self.shortest:,} to {self.longest:,}, {spread}"]
        if self.cut:
            said.append(f"{self.cut:,} rows ({self.cut / self.rows:.1%}) are cut off at max_length {self.max_length:,}")
        return tuple(said)

    def bands(self) -> str:
        """The histogram as a sentence."""
        return "tokens a row: " + ", ".join(f"up to {bound:,} in {count:,}" for bound, count in self.histogram)

    def chart(self) -> Iterator[str]:
        """The histogram as lines of text."""
        most = max(count for _, count in self.histogram)
        for bound, count in self.histogram:
            bar = "#" * round(_BARS * count / most)
            yield f"{'<=' if bound else ''}{bound:>7,} tokens {count:>9,} {bar}".rstrip()


@dataclass(slots=True)
class LengthTally:
    """Adds up counts; every different length is kept once, so millions of rows take little."""

    _lengths: Tally[int] = field(default_factory=Tally)
    _cut: int = 0
    _lost: int = 0
    _total: int = 0
    _pairs: bool = False

    def add(self, count: Count, max_length: int) -> None:
        """One more sample."""
        self._lengths[count.longest] += 1
        self._total += min(count.total, max_length) + min(count.rejected, max_length)
        self._pairs = self._pairs or count.rejected > 0
        self._cut += count.longest > max_length
        self._lost += count.prompt >= max_length

    def lengths(self, max_length: int, *, exact: bool) -> Lengths:
        """The distribution of at least one sample."""
        ordered = sorted(self._lengths.items())
        rows = self._lengths.total()
        histogram: dict[int, int] = {}
        for length, count in ordered:
            bound = 1 << max(length - 1, 0).bit_length()
            histogram[bound] = histogram.get(bound, 0) + count
        return Lengths(
            rows=rows,
            total=self._total,
            shortest=ordered[0][0],
            median=_at(ordered, rows, 0.5),
            high=_at(ordered, rows, 0.95),
            longest=ordered[-1][0],
            max_length=max_length,
            cut=self._cut,
            lost=self._lost,
            exact=exact,
            pairs=self._pairs,
            histogram=tuple(histogram.items()),
        )


def _at(ordered: list[tuple[int, int]], rows: int, share: float) -> int:
    """The length that `share` of the samples do not exceed."""
    seen = 0
    for length, count in ordered:
        seen += count
        if seen >= share * rows:
            return length
    return ordered[-1][0]
