# SPDX-License-Identifier: Apache-2.0
"""Cells of a row in, turns and texts out; and Sample, what they add up to. Pure.

Called by dataset_format.py and dataset_pair.py, which know what the columns mean.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kaito_ray.document import shown

Turn = tuple[str, str]
"""A role (system, user or assistant) and what it says."""

_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
_TOOL_ROLES = {"tool", "function", "function_call", "function_response", "observation", "ipython"}


class BadRow(Exception):
    """A row that cannot be learned from: the column and what is wrong with it."""

    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column


@dataclass(frozen=True, slots=True)
class Sample:
    """What one row teaches: an answer to a prompt, one answer rather than another, or a text."""

    prompt: tuple[Turn, ...] = ()
    answer: tuple[Turn, ...] = ()
    """Begins with the assistant; may go on with further turns."""
    text: str = ""
    rejected: tuple[Turn, ...] = ()
    """The answer that is worse, for methods that learn from pairs; else empty."""

    @property
    def key(self) -> str:
        """Equal for rows that teach the same."""
        pair = [self.rejected] if self.rejected else []
        return json.dumps([self.prompt, self.answer, self.text, *pair], ensure_ascii=False)

    @property
    def ends_open(self) -> bool:
        """Whether a last turn is not the model's, so that nothing is learned from it."""
        return any(side[-1][0] != "assistant" for side in (self.answer, self.rejected) if side)

    @property
    def is_tie(self) -> bool:
        """Whether neither answer of a pair is better, since they are the same."""
        return bool(self.rejected) and self.rejected == self.answer


def read_turns(column: str, value: Any) -> Iterator[Turn]:
    """The messages of a list; raises BadRow."""
    turns = parsed(value)
    if not isinstance(turns, list):
        raise BadRow(column, f"must be a list of messages, got {shown(turns)}")
    if not turns:
        raise BadRow(column, "is an empty list")
    for index, turn in enumerate(turns):
        where = f"message {index + 1}"
        if not isinstance(turn, Mapping):
            raise BadRow(column, f"{where} must be an object with role and content, got {shown(turn)}")
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        yield _role(column, where, role, index), _content(column, where, content)


def read_text(values: Mapping[str, Any], column: str) -> str:
    """The text of a column; raises BadRow."""
    value = values[column]
    if not isinstance(value, str):
        raise BadRow(column, f"must be text, got {shown(value)}")
    if not value.strip():
        raise BadRow(column, "is empty")
    return value


def read_prompt(values: Mapping[str, Any], column: str) -> list[Turn]:
    """What is asked: a text of the user, or a list of messages; raises BadRow."""
    value = parsed(values[column])
    return list(read_turns(column, value)) if isinstance(value, list) else [("user", read_text(values, column))]


def parsed(value: Any) -> Any:
    """A list of objects that stands as JSON in a cell of a CSV file; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _role(column: str, where: str, role: Any, index: int) -> str:
    known = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        if isinstance(role, str) and role.strip().lower() in _TOOL_ROLES:
            raise BadRow(column, f'{where} has the role "{role}"; kaito-ray does not train on calls of tools')
        raise BadRow(column, f"{where} must have the role system, user or assistant, got {shown(role)}")
    if known == "system" and index:
        raise BadRow(column, f"{where} has the role system, which only the first may have")
    return known


def _content(column: str, where: str, content: Any) -> str:
    if isinstance(content, list):  # the parts of a multimodal message
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise BadRow(column, f"{where} has a part that is no text; kaito-ray trains on text only")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise BadRow(column, f"{where} must have text as its content, got {shown(content)}")
    if not content.strip():
        raise BadRow(column, f"{where} is empty")
    return content
