# SPDX-License-Identifier: Apache-2.0
"""A row of preferences in, the pair that method dpo learns from out. Pure; called by dataset_format.py.

Each side is a text or a list of messages, and such a list is an answer to `prompt` or, where it begins otherwise, the
whole conversation. Both become whole conversations here, parted where they first differ.
"""

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from kaito_ray.artifacts.dataset_sample import BadRow, Sample, Turn, parsed, read_prompt, read_text, read_turns

NEEDED = (
    "method dpo learns from pairs: the columns chosen and rejected, with prompt or whole conversations in both of them"
)


def read_pair(columns: Mapping[str, str], values: Mapping[str, Any]) -> Sample:
    """What the row teaches to prefer; raises BadRow."""
    asked = read_prompt(values, columns["prompt"]) if "prompt" in columns else []
    chosen = _conversation(columns["chosen"], values, asked)
    rejected = _conversation(columns["rejected"], values, asked)
    alike = sum(1 for _ in takewhile(lambda turns: turns[0] == turns[1], zip(chosen, rejected, strict=False)))
    # An answer remains on either side, also when one goes on where the other ends.
    shared = min(alike, len(chosen) - 1, len(rejected) - 1)
    if shared == 0 or chosen[shared][0] != "assistant" or rejected[shared][0] != "assistant":
        message = f"must answer what {columns['chosen']} answers, and differs from it at message {shared + 1} already"
        raise BadRow(columns["rejected"], message)
    return Sample(tuple(chosen[:shared]), tuple(chosen[shared:]), rejected=tuple(rejected[shared:]))


def _conversation(column: str, values: Mapping[str, Any], asked: list[Turn]) -> list[Turn]:
    """One side with what was asked."""
    said = parsed(values[column])
    if isinstance(said, list):
        turns = list(read_turns(column, said))
        if not any(role == "assistant" for role, _ in turns):
            raise BadRow(column, "has no message of role assistant, so there is nothing to prefer")
        if turns[0][0] != "assistant":
            return turns
        if not asked:
            raise BadRow(column, "begins with role assistant; a question must come first")
        return [*asked, *turns]
    if not asked:
        raise BadRow(column, "must be a list of messages where there is no column prompt")
    return [*asked, ("assistant", read_text(values, column))]
