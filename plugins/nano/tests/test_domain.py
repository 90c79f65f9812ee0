"""The domain, and how its words become tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from moshi_pipe_nano import domain, words
from moshi_pipe_nano.shapes import TEXT_CARDINALITY
from moshi_pipe_nano.tokenizer import write_tokenizer
from moshi_pipe_nano.voices import HELD_OUT, TRAINED

if TYPE_CHECKING:
    from pathlib import Path


def test_every_question_has_one_answer() -> None:
    answers: dict[str, set[str]] = {}
    for exchange in domain.exchanges():
        answers.setdefault(exchange.question, set()).add(exchange.answer)
    several = {question for question, found in answers.items() if len(found) > 1}
    assert several <= {"hello how are you"}


def test_held_out_sums_use_digits_that_training_sees_on_both_sides() -> None:
    trained = [e.answer.split() for e in domain.exchanges() if e.kind == "sum" and e.trained]
    for exchange in domain.exchanges():
        if exchange.kind == "sum" and exchange.held_out_pair:
            left, _, right, _, _ = exchange.answer.split()
            assert any(said[0] == left for said in trained)
            assert any(said[2] == right for said in trained)


def test_held_out_voices_are_never_trained() -> None:
    assert not set(HELD_OUT) & set(TRAINED)


def test_text_comes_back_from_its_tokens() -> None:
    said = "three plus four is seven"
    tokens = [words.PADDING, *[words.token(word) for word in said.split()], words.WORD_START]
    assert words.text_of(tokens) == said


def test_the_tokenizer_has_a_piece_for_every_word(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    write_tokenizer(tmp_path / "tokenizer.model", TEXT_CARDINALITY)
    model = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    assert model.vocab_size() == TEXT_CARDINALITY
    for word in domain.vocabulary():
        assert model.id_to_piece(words.token(word)) == f"\N{LOWER ONE EIGHTH BLOCK}{word}"
    assert model.decode([words.token("good"), words.token("morning")]) == "good morning"
