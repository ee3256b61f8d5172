# SPDX-License-Identifier: Apache-2.0
"""The columns of a data set in, the format they are in out; a row in, what is learned from it out. Pure.

| format | columns |
|---|---|
| messages | `messages`: a list of `{"role": system, user or assistant, "content": text}` |
| sharegpt | `conversations`: a list of `{"from": human or gpt, "value": text}` |
| instruction | `instruction`, optionally `input` or `context`, and `output` or `response` |
| prompt-completion | `prompt` and `completion`, `question` and `answer`, `query` and `response`, `input` and `output` |
| preference | `chosen` and `rejected`, with `prompt` or whole conversations |
| text | `text`: learned as it stands |

Everything but text becomes a conversation: what stands before the model's first answer is the prompt, the rest is what
it learns to say. Of preferences that is the chosen side, unless the method learns from `pairs`, and then from nothing
else (dataset_pair.py). Called by dataset.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from kaito_ray.artifacts.dataset_pair import NEEDED, read_pair
from kaito_ray.artifacts.dataset_sample import BadRow, Sample, Turn, parsed, read_prompt, read_text, read_turns
from kaito_ray.document import shown


class Format(StrEnum):
    """How rows hold what is to be learned."""

    MESSAGES = "messages"
    SHAREGPT = "sharegpt"
    INSTRUCTION = "instruction"
    PROMPT_COMPLETION = "prompt-completion"
    PREFERENCE = "preference"
    TEXT = "text"


_LISTS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
_INSTRUCTIONS, _INPUTS = ("instruction", "instructions"), ("input", "context")
_OUTPUTS = ("output", "response", "completion", "answer")
_PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("prompt", "output"),
    ("question", "answer"), ("question", "response"), ("query", "response"), ("query", "answer"),
    ("input", "output"), ("context", "response"), ("source", "target"),
)  # fmt: skip
_TEXTS = ("text", "content", "document")


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


def detect(
    columns: Sequence[str], wish: Wish, first: Mapping[str, Any] | None = None, *, pairs: bool = False
) -> Layout | str:
    """The layout of a data set with these columns, or a sentence on why there is none.

    `first` is a row, which tells lists in the one style from lists in the other. `pairs` takes only preferences.
    """
    named = [column for column in (wish.messages_column, wish.context_column, wish.response_column) if column]
    absent = [column for column in named if column not in columns]
    if absent:
        return f"has no column {absent[0]}, which DatasetConfig names; there are {', '.join(columns)}"
    found = list(_layouts(columns, wish, first or {}))
    if pairs:
        what = f"is in the format {found[0]}" if found else f"has the columns {', '.join(columns) or 'of nothing'}"
        return next((layout for layout in found if layout.format == Format.PREFERENCE), f"{what}, and {NEEDED}")
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
        prompt = _first(by_name, ("prompt", "question", "instruction", "query", "input"))
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
    turns = parsed(first.get(column))
    styled = isinstance(turns, list) and any(isinstance(turn, Mapping) and "from" in turn for turn in turns)
    return Layout(Format.SHAREGPT if styled else Format.MESSAGES, {"messages": column})


def _first(by_name: Mapping[str, str], names: Sequence[str]) -> str:
    return next((by_name[name] for name in names if name in by_name), "")


def _named(**columns: str) -> dict[str, str]:
    return {part: column for part, column in columns.items() if column}


def read_sample(layout: Layout, values: Mapping[str, Any], *, pairs: bool = False) -> Sample:
    """What a row teaches; raises BadRow."""
    columns = layout.columns
    for part, column in columns.items():
        if column not in values or (values[column] is None and part != "input"):
            raise BadRow(column, f"is missing; the data set is in the format {layout}")
    match layout.format:
        case Format.TEXT:
            return Sample(text=read_text(values, columns["text"]))
        case Format.MESSAGES | Format.SHAREGPT:
            column = columns["messages"]
            return _split(column, list(read_turns(column, values[column])))
        case Format.PREFERENCE:
            return read_pair(columns, values) if pairs else _chosen(columns, values)
        case Format.INSTRUCTION:
            prompt = read_text(values, columns["prompt"])
            extra = columns.get("input")
            more = values.get(extra) if extra else None
            if more is not None and not isinstance(more, str):
                raise BadRow(str(extra), f"must be text, got {shown(more)}")
            asked = f"{prompt}\n\n{more}" if more and more.strip() else prompt
            return Sample((("user", asked),), (("assistant", read_text(values, columns["answer"])),))
        case Format.PROMPT_COMPLETION:
            return _pair(values, columns["prompt"], columns["answer"])


def _pair(values: Mapping[str, Any], prompt: str, answer: str) -> Sample:
    """Prompt and completion, each a text or a list of messages."""
    asked, after = read_prompt(values, prompt), parsed(values[answer])
    said = list(read_turns(answer, after)) if isinstance(after, list) else [("assistant", read_text(values, answer))]
    if not said or said[0][0] != "assistant":
        raise BadRow(answer, "must begin with a message of role assistant")
    return Sample(tuple(asked), tuple(said))


def _chosen(columns: Mapping[str, str], values: Mapping[str, Any]) -> Sample:
    """The better side of a preference."""
    chosen = columns["chosen"]
    said = parsed(values[chosen])
    if isinstance(said, list):
        turns = list(read_turns(chosen, said))
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
