# SPDX-License-Identifier: Apache-2.0
"""Bodies of the legacy `/chat` in, requests or KAITO's refusals out."""

import json
from typing import Any

import pytest

from serve_apps.legacy_chat import Refused, clean_spaces, parse_chat


def refusal(body: bytes | dict[str, Any]) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        parse_chat(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value.status, caught.value.detail


def test_a_prompt_alone_has_kaitos_defaults() -> None:
    request = parse_chat(b'{"prompt": "hi"}')
    assert request.return_full_text
    assert not request.stream
    assert request.generate_kwargs.max_length == 200
    assert request.generate_kwargs.top_k == 10


@pytest.mark.parametrize("body", [{}, {"prompt": ""}, {"prompt": None}, {"return_full_text": False}])
def test_no_prompt(body: dict[str, Any]) -> None:
    assert refusal(body) == (400, "Text generation parameter prompt required")


def test_no_messages() -> None:
    assert refusal({"messages": []}) == (400, "Conversational parameter messages required")


def test_null_is_the_default() -> None:
    plain = parse_chat(b'{"prompt": "hi"}')
    nulls = {
        "prompt": "hi",
        "prefix": None,
        "return_full_text": None,
        "handle_long_generation": None,
        "generate_kwargs": {"temperature": None, "eos_token_id": None, "pad_token_id": None},
    }
    assert parse_chat(json.dumps(nulls).encode()) == plain
    assert parse_chat(b'{"prompt": "hi", "generate_kwargs": null}') == plain


def test_keys_that_kaito_did_not_know_are_ignored() -> None:
    assert parse_chat(b'{"prompt": "hi", "colour": "red"}') == parse_chat(b'{"prompt": "hi"}')


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", ["not JSON"]),
        (b"{", ["not JSON"]),
        (b"\xff\xfe\xff", ["not JSON"]),
        (b"[" * 100_000, ["not JSON"]),
        (b"[]", ["JSON object"]),
        (b'"hi"', ["JSON object"]),
        ({"prompt": 5}, ["prompt", "5"]),
        ({"prompt": "x", "stream": "maybe"}, ["stream", "maybe"]),
        ({"prompt": "x", "generate_kwargs": []}, ["generate_kwargs"]),
        ({"prompt": "x", "generate_kwargs": {"temperature": -1}}, ["generate_kwargs.temperature", "-1"]),
        ({"prompt": "x", "generate_kwargs": {"top_p": 0}}, ["generate_kwargs.top_p", "0"]),
        ({"prompt": "x", "generate_kwargs": {"max_length": 0}}, ["generate_kwargs.max_length"]),
        ({"prompt": "x", "generate_kwargs": {"num_beams": 3}}, ["generate_kwargs.num_beams", "3"]),
        ({"prompt": "x", "handle_long_generation": "cut"}, ["handle_long_generation", "'hole'", "cut"]),
        ({"messages": ["hi"]}, ["messages.0", "hi"]),
        (
            {"prompt": "x", "stream": True, "generate_kwargs": {"num_return_sequences": 2}},
            ["num_return_sequences", "stream"],
        ),
        ({"prompt": "x", "stream": True, "clean_up_tokenization_spaces": True}, ["clean_up_tokenization_spaces"]),
        # All of it at once.
        (
            {"prompt": 1, "prefix": 2, "generate_kwargs": {"temperature": "hot", "top_k": -5}},
            ["prompt", "prefix", "temperature", "top_k"],
        ),
    ],
)
def test_every_bad_field_is_named(body: bytes | dict[str, Any], words: list[str]) -> None:
    status, detail = refusal(body)
    assert status == 400
    assert all(word in detail for word in words), detail


def test_a_huge_value_is_not_repeated() -> None:
    _, detail = refusal({"prompt": "x", "generate_kwargs": {"temperature": "9" * 10_000}})
    assert len(detail) < 500


def test_spaces_of_old_tokenizers() -> None:
    assert clean_spaces("It 's done , is n't it ? I 've seen it .") == "It's done, isn't it? I've seen it."
