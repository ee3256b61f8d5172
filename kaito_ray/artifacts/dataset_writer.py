# SPDX-License-Identifier: Apache-2.0
"""Samples in, one parquet file out with the columns that TRL reads. Called by dataset.py as rows come."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kaito_ray.artifacts.dataset_sample import Sample
from kaito_ray.artifacts.dataset_tokens import as_messages, plain_texts


class Writer:
    """The clean file; `chats` where the model has a chat template, so that it takes messages."""

    def __init__(self, path: Path, *, chats: bool) -> None:
        self.path = path
        self._chats = chats
        self._file: Any = None

    def write(self, samples: Sequence[Sample]) -> None:
        """Add rows."""
        import pyarrow
        from pyarrow import parquet

        if not samples:
            return
        table = pyarrow.Table.from_pylist([self._record(sample) for sample in samples])
        if self._file is None:
            self._file = parquet.ParquetWriter(self.path, table.schema, compression="zstd")
        if table.schema == self._file.schema:  # else it is reported: texts among conversations
            self._file.write_table(table)

    def _record(self, sample: Sample) -> dict[str, Any]:
        if sample.text:
            return {"text": sample.text}
        prompt: Any
        answer: Any
        rejected: Any
        if self._chats:
            prompt, answer, rejected = map(as_messages, (sample.prompt, sample.answer, sample.rejected))
        else:
            prompt, answer, rejected = plain_texts(sample)
        if sample.rejected:
            return {"prompt": prompt, "chosen": answer, "rejected": rejected}
        return {"prompt": prompt, "completion": answer}

    def close(self) -> None:
        """Finish the file."""
        if self._file is not None:
            self._file.close()
