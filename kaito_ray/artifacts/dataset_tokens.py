# SPDX-License-Identifier: Apache-2.0
"""How many tokens a sample has for one model, and whether the model's chat template takes it. Called by dataset.py.

With the tokenizer where transformers and the model's files are at hand (the job, `kaito-ray validate --data` on a
machine that has them), else by the rule of thumb of four characters a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kaito_ray.artifacts.dataset_sample import Sample, Turn

_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Count:
    """Tokens of a whole sample and of its prompt, which is 0 for a text; `trouble` is why it cannot be counted."""

    total: int
    prompt: int = 0
    trouble: str = ""
    rejected: int = 0
    """Of a pair: those of the prompt with the rejected answer, as `total` are with the chosen one."""

    @property
    def longest(self) -> int:
        """What must fit into the model's context."""
        return max(self.total, self.rejected)


class Counter(Protocol):
    """Counts tokens."""

    exact: bool
    """Whether the model's own tokenizer counts."""
    chats: bool
    """Whether the model has a chat template."""

    def count(self, samples: Sequence[Sample]) -> list[Count]:
        """The tokens of each sample."""
        ...


class RoughCounter:
    """Counts characters."""

    exact = False
    chats = True

    def count(self, samples: Sequence[Sample]) -> list[Count]:
        """The tokens of each sample, roughly."""
        return [self._count(sample) for sample in samples]

    def _count(self, sample: Sample) -> Count:
        prompt, answer, rejected = map(_characters, (sample.prompt, sample.answer, sample.rejected))
        whole = prompt + answer + len(sample.text)
        other = prompt + rejected if rejected else 0
        return Count(_tokens(whole), _tokens(prompt), rejected=_tokens(other))


def _characters(turns: Sequence[Turn]) -> int:
    return sum(len(content) for _, content in turns)


def _tokens(characters: int) -> int:
    return -(-characters // _CHARACTERS_PER_TOKEN)


class TokenCounter:
    """Counts with a tokenizer of transformers."""

    exact = True

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.chats = bool(tokenizer.chat_template)

    def count(self, samples: Sequence[Sample]) -> list[Count]:
        """The tokens of each sample, counted as TRL counts them."""
        texts: list[str] = []
        troubles: list[str] = []
        for sample in samples:
            try:
                read, trouble = self._texts(sample), ""
            except Exception as error:  # templates are programs of the model's author and raise what they like
                read, trouble = ("", "", ""), f"the model's chat template refuses it: {error}"
            texts += read
            troubles.append(trouble)
        ids = self._tokenizer(texts, add_special_tokens=not self.chats, verbose=False)["input_ids"]
        lengths = iter([len(one) for one in ids])
        return [
            Count(total, prompt, trouble, rejected)
            for prompt, total, rejected, trouble in zip(lengths, lengths, lengths, troubles, strict=True)
        ]

    def _texts(self, sample: Sample) -> tuple[str, str, str]:
        """The prompt, the whole and, of a pair, the whole with the rejected answer, as the model reads them."""
        if sample.text:
            return "", sample.text, ""
        if not self.chats:
            prompt, chosen, rejected = plain_texts(sample)
            return prompt, prompt + chosen, prompt + rejected if rejected else ""
        before = as_messages(sample.prompt)
        prompt = self._tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
        whole, other = (
            self._tokenizer.apply_chat_template(before + as_messages(side), tokenize=False) if side else ""
            for side in (sample.answer, sample.rejected)
        )
        return prompt, whole, other


def as_messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Turns as chat templates and TRL take them."""
    return [{"role": role, "content": content} for role, content in turns]


def plain_texts(sample: Sample) -> tuple[str, str, str]:
    """Prompt, answer and, of a pair, the rejected answer as plain texts, for a model without a chat template.

    Where neither brings white space a line break parts them, so that the last word and the first do not melt. Raises
    ValueError for what only a conversation can say.
    """
    if len(sample.prompt) != 1 or len(sample.answer) != 1 or len(sample.rejected) > 1:
        raise ValueError("the model has no chat template, so it can learn single questions and answers only")
    (_, asked), (_, said) = sample.prompt[0], sample.answer[0]
    rejected = sample.rejected[0][1] if sample.rejected else ""
    glue = "" if asked[-1:].isspace() or said[:1].isspace() else "\n"
    return asked + glue, said, rejected
