# SPDX-License-Identifier: Apache-2.0
"""KAITO's generate_kwargs in, vLLM's sampling fields out, as a table."""

from typing import Any

import pytest

from serve_apps.sampling import GenerateKwargs, sampling_fields, unsupported

DEFAULTS: dict[str, Any] = {
    "n": 1,
    "max_tokens": 190,
    "min_tokens": 0,
    "temperature": 1.0,
    "top_k": 10,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": None,
    "stop": [],
    "stop_token_ids": [],
    "bad_words": [],
    "ignore_eos": False,
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
}


def fields(kwargs: dict[str, Any], *, prompt_tokens: int = 10, context: int = 1000) -> dict[str, Any]:
    return sampling_fields(GenerateKwargs(**kwargs), prompt_tokens=prompt_tokens, context=context)


@pytest.mark.parametrize(
    ("kwargs", "differs"),
    [
        ({}, {}),
        ({"max_length": 30}, {"max_tokens": 20}),
        ({"max_length": 5000}, {"max_tokens": 990}),
        ({"max_new_tokens": 7}, {"max_tokens": 7}),
        ({"max_new_tokens": 7, "max_length": 3}, {"max_tokens": 7}),
        ({"min_length": 25}, {"min_tokens": 15}),
        ({"min_length": 5}, {"min_tokens": 0}),
        ({"min_new_tokens": 5, "min_length": 100}, {"min_tokens": 5}),
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"top_k": 0}, {"top_k": 0}),
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"eos_token_id": 7}, {"stop_token_ids": [7], "ignore_eos": True}),
        ({"eos_token_id": [7, 8]}, {"stop_token_ids": [7, 8], "ignore_eos": True}),
        ({"num_return_sequences": 3}, {"n": 3}),
        ({"min_p": 0.1}, {"min_p": 0.1}),
        ({"seed": 4}, {"seed": 4}),
        ({"stop": "\n"}, {"stop": ["\n"]}),
        ({"stop_strings": ["a"], "stop": ["b"]}, {"stop": ["b", "a"]}),
        ({"stop_token_ids": [3]}, {"stop_token_ids": [3]}),
        ({"bad_words": ["no"]}, {"bad_words": ["no"]}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
        ({"presence_penalty": 1, "frequency_penalty": -1}, {"presence_penalty": 1.0, "frequency_penalty": -1.0}),
        ({"skip_special_tokens": False}, {"skip_special_tokens": False}),
        ({"include_stop_str_in_output": True}, {"include_stop_str_in_output": True}),
        # Say nothing here.
        ({"pad_token_id": 3, "early_stopping": True, "use_cache": False, "length_penalty": 2.0}, {}),
        ({"num_beams": 1, "typical_p": 1, "no_repeat_ngram_size": 0}, {}),
    ],
)
def test_mapped(kwargs: dict[str, Any], differs: dict[str, Any]) -> None:
    assert unsupported(GenerateKwargs(**kwargs)) == []
    assert fields(kwargs) == DEFAULTS | differs


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"num_beams": 4}, ["num_beams must be 1, got 4"]),
        ({"typical_p": 0.5}, ["typical_p must be 1, got 0.5"]),
        ({"no_repeat_ngram_size": 2}, ["no_repeat_ngram_size must be 0, got 2"]),
        ({"temprature": 1}, ["temprature is not known", "temperature"]),
        ({"num_beams": 2, "frobnicate": 1}, ["num_beams", "frobnicate"]),
    ],
)
def test_refused_by_name(kwargs: dict[str, Any], words: list[str]) -> None:
    said = "; ".join(unsupported(GenerateKwargs(**kwargs)))
    assert all(word in said for word in words)


@pytest.mark.parametrize(
    ("kwargs", "prompt_tokens", "words"),
    [
        ({}, 200, ["max_length is 200", "200 tokens"]),
        ({"max_length": 5}, 10, ["max_length is 5", "10 tokens"]),
        ({}, 1000, ["prompt has 1000 tokens", "1000"]),
        ({"min_length": 300}, 10, ["min_length", "290", "190"]),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, 10, ["min_new_tokens", "9", "3"]),
    ],
)
def test_no_room(kwargs: dict[str, Any], prompt_tokens: int, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the words are checked
        fields(kwargs, prompt_tokens=prompt_tokens)
    assert all(word in str(caught.value) for word in words)
