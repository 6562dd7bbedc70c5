"""Prompts and answers as tokens: what is learnt, what is cut, and where a text begins and ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hushtune.common.errors import BadValueError
from hushtune.common.tasks.kinds.causal_lm import Example, encode, messages_of, prompt
from hushtune.common.tasks.kinds.seq2seq import answer_ids

from ...client.words import make_tokenizer

BEGIN, END = 2, 3
ASKED = [{"role": "user", "content": "which colour has the moon"}]


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def whole(example: Example) -> list[int]:
    return [*example.ids, *example.answer[-1:]]


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("begins", [True, False])
def test_an_example_is_what_is_written_when_it_is_asked(template: bool, begins: bool) -> None:
    """The tokens of the prompt as generation has them, then the answer and the end token."""
    tokenizer = make_tokenizer(template=template, begins=begins)
    example = encode(tokenizer, ASKED, "it is white", max_tokens=64)
    answer = [*ids(tokenizer, "it is white"), END]
    before = prompt(tokenizer, ASKED)
    assert example.answer == answer
    assert whole(example) == before + answer
    if template:
        turns: Any = tokenizer.apply_chat_template(
            ASKED, add_generation_prompt=True, return_dict=True
        )
        assert before == turns["input_ids"]
    else:
        text = "user: which colour has the moon\nassistant: "
        assert before == [*([BEGIN] if begins else []), *ids(tokenizer, text)]
        assert before == tokenizer(text)["input_ids"]


def test_earlier_turns_are_read_and_not_learnt() -> None:
    tokenizer = make_tokenizer()
    turns = [
        {"role": "system", "content": "tell me"},
        {"role": "user", "content": "the sea"},
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": "the sun"},
    ]
    example = encode(tokenizer, turns, "yellow", max_tokens=64)
    assert example.answer == [*ids(tokenizer, "yellow"), END]
    assert ids(tokenizer, "blue")[0] in example.ids


@pytest.mark.parametrize("begins", [True, False])
def test_of_a_plain_text_every_token_is_learnt(begins: bool) -> None:
    tokenizer = make_tokenizer(begins=begins)
    words = ids(tokenizer, "the sea is blue")
    example = encode(tokenizer, [], "the sea is blue", max_tokens=64)
    assert example == Example([BEGIN, *words], [*words, END])
    tokenizer.bos_token = None  # as Qwen: then nothing tells the first one
    assert encode(tokenizer, [], "the sea is blue", max_tokens=64) == Example(
        words, [*words[1:], END]
    )
    tokenizer.eos_token = None
    assert encode(tokenizer, [], "sea", max_tokens=64) == Example(ids(tokenizer, "sea"), [])


@pytest.mark.parametrize("room", [4, 8, 12, 16, 20, 64])
@pytest.mark.parametrize("size", [1, 3, 9, 30])
def test_the_prompt_loses_its_beginning_and_then_the_answer_its_end(room: int, size: int) -> None:
    tokenizer = make_tokenizer(template=False, begins=True)
    answer = " ".join(["blue"] * size)
    full = encode(tokenizer, ASKED, answer, max_tokens=10_000)
    found = encode(tokenizer, ASKED, answer, max_tokens=room)
    before = prompt(tokenizer, ASKED)
    assert len(whole(found)) == min(room, len(whole(full)))
    kept = len(whole(found)) - len(found.answer)
    assert found.answer == full.answer[: len(found.answer)]
    assert len(found.answer) >= 1
    assert kept >= min(len(before), max(1, room // 4))
    if kept < len(before):  # the token that begins a text stays
        rest = before[1 - kept :] if kept > 1 else []
        assert found.ids[:kept] == ([BEGIN, *rest] if kept > 1 else before[-1:])
        assert kept == max(1, room // 4, room - len(full.answer))
    else:
        assert found.ids[:kept] == before


def test_a_canonical_input_is_messages_or_what_a_user_says() -> None:
    assert messages_of(json.dumps(ASKED)) == ASKED
    assert messages_of("[]") == []
    for text in (
        "[sic] is it so?",
        "17",
        '["a"]',
        '[{"role": "user"}]',
        '{"role": "user"}',
        "null",
    ):
        assert messages_of(text) == [{"role": "user", "content": text}]


def test_a_template_s_refusal_says_what_was_given() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('system messages are not supported') }}"
    with pytest.raises(BadValueError, match="not supported") as caught:
        prompt(tokenizer, [{"role": "system", "content": "a"}, *ASKED])
    assert "system, user" in str(caught.value)


def test_a_target_ends_once_whether_or_not_the_tokenizer_says_so() -> None:
    tokenizer = make_tokenizer(template=False)
    words = ids(tokenizer, "the sea")
    assert answer_ids(tokenizer, ["the sea"], max_tokens=9) == [[*words, END]]
    assert answer_ids(tokenizer, ["the sea"], max_tokens=2) == [words]
    begun = make_tokenizer(template=False, begins=True, ends=True)
    assert answer_ids(begun, ["the sea"], max_tokens=9) == [[BEGIN, *words, END]]
