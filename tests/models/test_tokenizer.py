"""Text tokens to pieces, and the tokenizers that are made here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_pipe.errors import CheckpointError, ConfigError
from moshi_pipe.models.tokenizer import SentencePieceTokenizer, train_tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tiny_tokenizer(path, 512)
    return SentencePieceTokenizer(path)


@pytest.mark.parametrize("vocab_size", [320, 512, 4000, 32_000])
def test_a_vocabulary_has_exactly_the_size_that_was_asked_for(
    tmp_path: Path, vocab_size: int
) -> None:
    train_tiny_tokenizer(tmp_path / "a.model", vocab_size)
    tokenizer = SentencePieceTokenizer(tmp_path / "a.model")
    assert len(tokenizer) == vocab_size
    assert tokenizer.piece(vocab_size - 1) != ""
    assert tokenizer.piece(vocab_size) == ""
    assert max(tokenizer.encode("It was a bright cold day.")) < min(vocab_size, 800)
    assert [path.name for path in tmp_path.iterdir()] == ["a.model"]


@pytest.mark.parametrize("vocab_size", [320, 4000])
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, vocab_size: int) -> None:
    for name in ("a", "b"):
        train_tiny_tokenizer(tmp_path / name, vocab_size)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        train_tiny_tokenizer(tmp_path / "a", 319)
    assert str(caught.value) == (
        "a tokenizer needs more pieces\n"
        "  got:    319\n"
        "  wanted: 320 or more: 4 reserved ones, 256 bytes, some text"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_first_ids_are_the_reserved_ones(tokenizer: SentencePieceTokenizer) -> None:
    assert [tokenizer.piece(i) for i in range(4)] == ["<unk>", "<s>", "</s>", "<pad>"]
    assert (tokenizer.word_start_id, tokenizer.eos_id, tokenizer.padding_id) == (0, 2, 3)
    assert all(tokenizer.is_control(i) for i in range(4))
    assert not any(tokenizer.is_byte(i) for i in range(4))


def test_the_bytes_follow_in_order(tokenizer: SentencePieceTokenizer) -> None:
    ids = range(4, 260)
    assert [tokenizer.piece(i) for i in ids] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert all(tokenizer.is_byte(i) for i in ids)
    assert not any(tokenizer.is_control(i) for i in ids)
    assert not any(tokenizer.is_byte(i) for i in range(260, 512))


def test_pieces_that_fill_up_a_vocabulary_carry_no_text(tmp_path: Path) -> None:
    train_tiny_tokenizer(tmp_path / "a", 1000)
    tokenizer = SentencePieceTokenizer(tmp_path / "a")
    unused = [i for i in range(4, 1000) if tokenizer.is_control(i)]
    assert unused == list(range(800, 1000))


@pytest.mark.parametrize("token", [-1, 512, 10**9])
def test_a_token_outside_the_vocabulary_is_nothing(
    tokenizer: SentencePieceTokenizer, token: int
) -> None:
    assert tokenizer.piece(token) == ""
    assert tokenizer.is_control(token)
    assert not tokenizer.is_byte(token)


def text_of(tokenizer: SentencePieceTokenizer, tokens: list[int]) -> str:
    """Joined by hand: bytes as they are, blanks for marks."""
    data = b"".join(
        bytes([int(tokenizer.piece(t)[3:5], 16)])
        if tokenizer.is_byte(t)
        else tokenizer.piece(t).replace("▁", " ").encode()
        for t in tokens
    )
    return data.decode()


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126)))
def test_any_plain_word_can_be_written_and_read_back(
    tokenizer: SentencePieceTokenizer, word: str
) -> None:
    assert text_of(tokenizer, tokenizer.encode(word)).strip() == word


@pytest.mark.parametrize("text", ["café", "日本語", "😀 smile", "Good day"])
def test_words_beyond_the_corpus_fall_back_to_bytes(
    tokenizer: SentencePieceTokenizer, text: str
) -> None:
    tokens = tokenizer.encode(text)
    assert 0 not in tokens
    assert text_of(tokenizer, tokens).strip() == text


@pytest.mark.parametrize("data", [b"", b"no model at all", bytes(200), None])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "tokenizer.model"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        SentencePieceTokenizer(path)
    assert caught.value.what == f"the text tokenizer {path} cannot be read"
    assert caught.value.got
    assert caught.value.wanted == "a SentencePiece model"


def test_a_model_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    train_tiny_tokenizer(path, 320)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        SentencePieceTokenizer(path)
