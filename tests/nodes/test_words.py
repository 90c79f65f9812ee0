"""From text tokens to words with times."""

from __future__ import annotations

import pytest
from support.tokens import EOS, PAD, START, WordTokenizer, ids

from moshi_pipe.nodes.words import Word, WordBuilder, piece_bytes


def words(tokens: list[int]) -> list[Word]:
    builder = WordBuilder(WordTokenizer())
    found = [word for frame, token in enumerate(tokens) for word in builder.push(token, frame)]
    return found + builder.finish()


def texts(*parts: str | int | bytes) -> list[str]:
    return [word.text for word in words(ids(*parts))]


def test_pieces_of_one_word_are_joined_and_keep_their_frames_and_tokens() -> None:
    tokens = ids(PAD, START, "▁Hello", PAD, START, "▁wor", "ld", ".", PAD)
    hello, wor, ld, stop = ids("▁Hello", "▁wor", "ld", ".")
    assert words(tokens) == [
        Word("Hello", 2, 2, ((hello, 2),)),
        Word("world.", 5, 7, ((wor, 5), (ld, 6), (stop, 7))),
    ]


def test_a_word_is_given_when_the_next_is_announced_or_begins() -> None:
    builder = WordBuilder(WordTokenizer())
    hello, wor, ld = ids("▁Hello", "▁wor", "ld")
    assert builder.push(hello, 0) == []
    assert [word.text for word in builder.push(START, 1)] == ["Hello"]
    assert builder.push(hello, 2) == []
    assert [word.text for word in builder.push(wor, 3)] == ["Hello"]
    assert builder.push(ld, 4) == []
    assert [word.text for word in builder.finish()] == ["world"]
    assert builder.finish() == []


def test_a_word_is_given_a_second_after_its_last_piece() -> None:
    builder = WordBuilder(WordTokenizer())
    builder.push(ids("▁Hello")[0], 0)
    given = [frame for frame in range(1, 40) if builder.push(PAD, frame)]
    assert given == [13]


def test_padding_inside_a_word_does_not_part_it() -> None:
    assert texts("▁wor", PAD, PAD, "ld") == ["world"]


def test_an_announced_word_need_not_begin_with_a_mark() -> None:
    assert texts("▁wor", START, "ld") == ["wor", "ld"]


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        (["▁caf", "é".encode()], ["café"]),
        (["▁", "😀".encode(), "s"], ["😀s"]),
        (["▁", "naïve 日本".encode()], ["naïve", "日本"]),
        (["▁caf", b"\xc3", PAD, b"\xa9"], ["café"]),
        (["▁caf", b"\xc3"], ["caf\ufffd"]),
        (["▁caf", b"\xff\xfe", "s"], ["caf\ufffd\ufffds"]),
        (["▁caf", b"\xc3", START, b"\xa9"], ["caf\ufffd", "\ufffd"]),
        (["▁caf", b"\n\n", "s"], ["caf s"]),
        (["▁", "▁", PAD], []),
        (["▁", b" \n"], []),
        ([PAD, START, EOS, 1, -1, 9999], []),
        (["s", "▁Hello"], ["s", "Hello"]),
        (["▁Hello", EOS, "▁wor", "ld"], ["Hello", "world"]),
    ],
)
def test_bytes_blanks_and_control_tokens(parts: list[str | int | bytes], wanted: list[str]) -> None:
    assert texts(*parts) == wanted


def test_a_piece_is_turned_to_bytes() -> None:
    tokenizer = WordTokenizer()
    assert piece_bytes(tokenizer, *ids("▁caf")) == b" caf"
    assert piece_bytes(tokenizer, *ids(b"\xc3")) == b"\xc3"
