"""Literal paths, for any text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_pipe.overrides import is_literal_key, prepare, quote_literal

# No control characters: neither a shell nor YAML passes them on in one piece.
TEXT = st.text(
    st.one_of(
        st.sampled_from("\\'\"${}[]()=,#:~ é"),
        st.characters(exclude_categories=("C", "Z")),
    ),
    min_size=1,
    max_size=30,
)


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_quoted_text_comes_back_as_it_was(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    override = OverridesParser.create().parse_override(f"key={quote_literal(text)}")

    config = OmegaConf.create({"key": override.value()})
    assert config.key == text
    assert OmegaConf.create(OmegaConf.to_yaml(config)).key == text


@pytest.mark.parametrize(
    ("key", "is_literal"),
    [
        ("source.path", True),
        ("output_dir", True),
        ("model.lm_file", True),
        ("sink.file.path", True),
        ("cache.dir", True),
        ("model.url", True),
        ("sink.hook.post_url", True),
        ("sink.file", False),
        ("hydra.run.dir", False),
        ("source.paths", False),
        ("seed", False),
    ],
)
def test_a_path_or_an_address_is_known_by_its_key(key: str, is_literal: bool) -> None:
    assert is_literal_key(key) is is_literal


def test_other_words_are_left_alone() -> None:
    words = ["seed=1", "sink=[file,transcript]", "--cfg", "job", "~sink.file", "a.wav"]

    assert prepare(words) == words


def test_an_address_that_was_quoted_for_hydra_is_left_alone() -> None:
    words = ["sink.webhook.url='http://host/words?room=1'", 'model.url="ws://host:8998"']

    assert prepare(words) == words


def test_hydras_grammar_can_be_asked_for_in_a_multirun() -> None:
    words = ["-m", "source.path=choice('a','b,c')", "source.path='a','b,c'"]

    assert prepare(words) == words


def test_a_sign_before_a_key_is_kept() -> None:
    assert prepare(["++source.path=a b"]) == ["++source.path='a b'"]
