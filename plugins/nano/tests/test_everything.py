"""One command from nothing to a checkpoint in the released layout, in small."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from moshi_pipe_nano.app import run_stage
from moshi_pipe_nano.codec_data import assistant_lines
from moshi_pipe_nano.codes import load_codes, load_questions
from moshi_pipe_nano.domain import exchanges
from moshi_pipe_nano.options import parse_options

from moshi_pipe.api import load

if TYPE_CHECKING:
    from pathlib import Path

SMALL = [
    "stage=all", "device=cpu", "threads=1", "workers=1",
    "codec.num_filters=4", "codec.dimension=32", "codec.num_layers=1", "codec.quantizer_dim=8",
    "codec.num_codebooks=3", "codec.cardinality=20", "codec.num_salads=4",
    "codec.num_user_sentences=12", "codec.assistant_batch=2", "codec.user_batch=2",
    "codec.num_steps=2", "codec.num_decoder_steps=1", "data.num_conversations=8",
    "data.num_frames=100", "data.num_validation=2", "lm.dim=32", "lm.num_heads=2",
    "lm.num_layers=1", "lm.depth_dim=16", "lm.depth_heads=2", "lm.depth_layers=1",
    "lm.depth_feedforward=24", "lm.num_steps=2", "lm.batch=4",
]  # fmt: skip


def test_one_command_makes_a_model_from_nothing(tmp_path: Path) -> None:
    run_stage(parse_options([*SMALL, f"out={tmp_path}"]))

    assert len(load_codes(tmp_path / "codes.npz")) == 8
    assert load_questions(tmp_path / "questions.npz").held_out.tolist() == [False, True]
    assert set(json.loads((tmp_path / "evaluation.json").read_text())) == {"0.0", "0.5"}
    assert (tmp_path / "lm-loss.svg").exists()
    model = load(str(tmp_path / "released"), overrides={"device": "cpu"})
    with model.session(seed=0) as session:
        frames = list(session.run(np.zeros(6 * 1_920, np.float32)))
    assert any(frame.audio is not None for frame in frames)


def test_no_sentence_of_the_model_gives_a_held_out_answer_away() -> None:
    held_out = {e.answer for e in exchanges() if e.held_out_pair}
    spoken = {line.text for line in assistant_lines(2_000, seed=0)}
    assert held_out
    assert not spoken & held_out
    assert sum(text.count(" plus ") == 1 and text not in held_out for text in spoken) > 80
