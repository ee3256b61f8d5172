# SPDX-License-Identifier: Apache-2.0
"""The columns of a data set in, the format they are in out; a row in, what is learned from it out. Pure.

| format | columns |
|---|---|
| messages | `messages`: a list of `{"role": system, user or assistant, "content": text}` |
| sharegpt | `conversations`: a list of `{"from": human or gpt, "value": text}` |
| instruction | `instruction`, optionally `input` or `context`, and `output` or `response` |
| prompt-completion | `prompt` and `completion`, `question` and `answer`, `query` and `response`, `input` and `output` |
| preference | `chosen` and `rejected`, with `prompt` or whole conversations; the chosen side is learned |
| text | `text`: learned as it stands |

Everything but text becomes a conversation: what stands before the model's first answer is the prompt, the rest is what
it learns to say. Called by dataset.py.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from kaito_ray.document import shown

Turn = tuple[str, str]
"""A role (system, user or assistant) and what it says."""


class Format(StrEnum):
    """How rows hold what is to be learned."""

    MESSAGES = "messages"
    SHAREGPT = "sharegpt"
    INSTRUCTION = "instruction"
    PROMPT_COMPLETION = "prompt-completion"
    PREFERENCE = "preference"
    TEXT = "text"


_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
_TOOL_ROLES = {"tool", "function", "function_call", "function_response", "observation", "ipython"}
_LISTS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
_INSTRUCTIONS, _INPUTS = ("instruction", "instructions"), ("input", "context")
_OUTPUTS = ("output", "response", "completion", "answer")
_PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("prompt", "output"),
    ("question", "answer"), ("question", "response"), ("query", "response"), ("query", "answer"),
    ("input", "output"), ("context", "response"), ("source", "target"),
)  # fmt: skip
_TEXTS = ("text", "content", "document")


class BadRow(Exception):
    """A row that cannot be learned from: the column and what is wrong with it."""

    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user said about the columns; empty where it is to be found out."""

    format: str = ""
    messages_column: str = ""
    context_column: str = ""
    response_column: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """A format and the columns it is read from, by the part they play."""

    format: Format
    columns: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.format} ({', '.join(dict.fromkeys(self.columns.values()))})"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one row teaches: an answer to a prompt, or a text."""

    prompt: tuple[Turn, ...] = ()
    answer: tuple[Turn, ...] = ()
    """Begins with the assistant; may go on with further turns."""
    text: str = ""

    @property
    def key(self) -> str:
        """Equal for rows that teach the same."""
        return json.dumps([self.prompt, self.answer, self.text], ensure_ascii=False)

    @property
    def ends_open(self) -> bool:
        """Whether the last turn is not the model's, so that nothing is learned from it."""
        return bool(self.answer) and self.answer[-1][0] != "assistant"


def detect(columns: Sequence[str], wish: Wish, first: Mapping[str, Any] | None = None) -> Layout | str:
    """The layout of a data set with these columns, or a sentence on why there is none.

    `first` is a row, which tells lists in the one style from lists in the other.
    """
    named = [column for column in (wish.messages_column, wish.context_column, wish.response_column) if column]
    absent = [column for column in named if column not in columns]
    if absent:
        return f"has no column {absent[0]}, which DatasetConfig names; there are {', '.join(columns)}"
    found = list(_layouts(columns, wish, first or {}))
    if wish.format:
        found = [layout for layout in found if layout.format == wish.format]
    if found:
        return found[0]
    kinds = f"the format {wish.format}" if wish.format else "any format that kaito-ray knows"
    return (
        f"has the columns {', '.join(columns) or 'of nothing'}, which are not those of {kinds}: messages,"
        " conversations, prompt and completion, instruction and output, chosen and rejected, or text;"
        " DatasetConfig can name messages_column, or context_column and response_column"
    )


def _layouts(columns: Sequence[str], wish: Wish, first: Mapping[str, Any]) -> Iterator[Layout]:
    by_name = {column.strip().lower(): column for column in columns}
    if wish.messages_column:
        yield _list_layout(wish.messages_column, first)
        return
    if wish.response_column:
        if wish.context_column:
            yield Layout(Format.PROMPT_COMPLETION, {"prompt": wish.context_column, "answer": wish.response_column})
        else:
            yield Layout(Format.TEXT, {"text": wish.response_column})
        return
    for name in _LISTS:
        if name in by_name:
            yield _list_layout(by_name[name], first)
    if "chosen" in by_name and "rejected" in by_name:
        prompt = _first(by_name, ("prompt", "question", "instruction"))
        yield Layout(Format.PREFERENCE, _named(prompt=prompt, chosen=by_name["chosen"], rejected=by_name["rejected"]))
    instruction, output = _first(by_name, _INSTRUCTIONS), _first(by_name, _OUTPUTS)
    if instruction and output:
        yield Layout(Format.INSTRUCTION, _named(prompt=instruction, input=_first(by_name, _INPUTS), answer=output))
    for prompt, answer in _PAIRS:
        if prompt in by_name and answer in by_name:
            yield Layout(Format.PROMPT_COMPLETION, {"prompt": by_name[prompt], "answer": by_name[answer]})
    text = _first(by_name, _TEXTS)
    if text:
        yield Layout(Format.TEXT, {"text": text})


def _list_layout(column: str, first: Mapping[str, Any]) -> Layout:
    turns = _parsed(first.get(column))
    styled = isinstance(turns, list) and any(isinstance(turn, Mapping) and "from" in turn for turn in turns)
    return Layout(Format.SHAREGPT if styled else Format.MESSAGES, {"messages": column})


def _first(by_name: Mapping[str, str], names: Sequence[str]) -> str:
    return next((by_name[name] for name in names if name in by_name), "")


def _named(**columns: str) -> dict[str, str]:
    return {part: column for part, column in columns.items() if column}


def read_sample(layout: Layout, values: Mapping[str, Any]) -> Sample:
    """What a row teaches; raises BadRow."""
    columns = layout.columns
    for part, column in columns.items():
        if column not in values or (values[column] is None and part != "input"):
            raise BadRow(column, f"is missing; the data set is in the format {layout}")
    match layout.format:
        case Format.TEXT:
            return Sample(text=_text(values, columns["text"]))
        case Format.MESSAGES | Format.SHAREGPT:
            column = columns["messages"]
            return _split(column, list(_turns(column, values[column])))
        case Format.PREFERENCE:
            return _preference(columns, values)
        case Format.INSTRUCTION:
            prompt = _text(values, columns["prompt"])
            extra = columns.get("input")
            more = values.get(extra) if extra else None
            if more is not None and not isinstance(more, str):
                raise BadRow(str(extra), f"must be text, got {shown(more)}")
            asked = f"{prompt}\n\n{more}" if more and more.strip() else prompt
            return Sample((("user", asked),), (("assistant", _text(values, columns["answer"])),))
        case Format.PROMPT_COMPLETION:
            return _pair(values, columns["prompt"], columns["answer"])


def _pair(values: Mapping[str, Any], prompt: str, answer: str) -> Sample:
    """Prompt and completion, each a text or a list of messages."""
    before, after = _parsed(values[prompt]), _parsed(values[answer])
    asked = list(_turns(prompt, before)) if isinstance(before, list) else [("user", _text(values, prompt))]
    said = list(_turns(answer, after)) if isinstance(after, list) else [("assistant", _text(values, answer))]
    if not said or said[0][0] != "assistant":
        raise BadRow(answer, "must begin with a message of role assistant")
    return Sample(tuple(asked), tuple(said))


def _preference(columns: Mapping[str, str], values: Mapping[str, Any]) -> Sample:
    chosen = columns["chosen"]
    said = _parsed(values[chosen])
    if isinstance(said, list):
        turns = list(_turns(chosen, said))
        # Some sets repeat the prompt at the beginning of both sides.
        if turns[0][0] != "assistant" or "prompt" not in columns:
            return _split(chosen, turns)
    elif "prompt" not in columns:
        raise BadRow(chosen, "must be a list of messages where there is no column prompt")
    return _pair(values, columns["prompt"], chosen)


def _split(column: str, turns: list[Turn]) -> Sample:
    """A conversation at the model's first answer."""
    first = next((index for index, (role, _) in enumerate(turns) if role == "assistant"), None)
    if first is None:
        raise BadRow(column, "has no message of role assistant, so there is nothing to learn")
    if first == 0:
        raise BadRow(column, "begins with role assistant; a question must come first")
    return Sample(tuple(turns[:first]), tuple(turns[first:]))


def _turns(column: str, value: Any) -> Iterator[Turn]:
    turns = _parsed(value)
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


def _text(values: Mapping[str, Any], column: str) -> str:
    value = values[column]
    if not isinstance(value, str):
        raise BadRow(column, f"must be text, got {shown(value)}")
    if not value.strip():
        raise BadRow(column, "is empty")
    return value


def _parsed(value: Any) -> Any:
    """A list of objects that stands as JSON in a cell of a CSV file; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
