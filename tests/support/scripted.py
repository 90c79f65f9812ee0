"""A plugin with a model that says what a file tells it, each session by its seed.

A test copies it into a folder of plugins, so that a whole run has answers that are known.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moshi_pipe.graph.format import Audio, Text
from moshi_pipe.graph.node import BatchedNode, SessionSettings, TextReader, Tick, Value
from moshi_pipe.hooks import hookimpl
from support.duplex_bench import FRAME, TOKENIZER, Said, answer_audio, answer_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moshi_pipe.hooks import OwnedRegistry
    from moshi_pipe.models.spec import CodecSpec

FRAMES = 250  # 20 s


@dataclass
class ScriptOptions:
    """Where the script is.

    Attributes:
        path: JSON: seed to what is said, ``[[at_s, text], ...]``.
    """

    path: str = "script.json"


class ScriptedModel(BatchedNode):
    """Answers as it is told, and hears nothing."""

    def __init__(self, options: ScriptOptions) -> None:
        self.options = options
        self.answers: dict[int, tuple[Any, list[int]]] = {}
        self.frames: dict[int, int] = {}

    def fit(self, codec: CodecSpec) -> None:
        """Take the codec's frames."""
        audio = Audio(codec.sample_rate, codec.frame_size, codec.channels)
        self.inputs = {"audio": audio}
        self.outputs = {"audio": audio, "text": Text(len(TOKENIZER.pieces), codec.frame_rate)}

    def readers(self) -> Mapping[str, TextReader]:
        """Tell what the words are."""
        return {"text": TextReader(TOKENIZER)}

    def join(self, slot: int, settings: SessionSettings) -> None:
        """Look up what to say."""
        script = json.loads(Path(self.options.path).read_text())
        said = tuple(Said(at_s, text) for at_s, text in script[str(settings.seed)])
        self.answers[slot] = answer_audio(said, FRAMES), answer_tokens(said, FRAMES)
        self.frames[slot] = 0

    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        """Say the next frame."""
        audio = torch.zeros_like(inputs["audio"].tensor)
        text = torch.zeros(tick.n, dtype=torch.int64)
        for slot in map(int, np.flatnonzero(tick.active)):
            frame, (pcm_N, tokens) = self.frames[slot], self.answers[slot]
            audio[slot, 0] = torch.from_numpy(pcm_N[frame * FRAME : (frame + 1) * FRAME])
            text[slot] = tokens[frame]
            self.frames[slot] += 1
        return {"audio": Value(audio, tick.active), "text": Value(text, tick.active)}


@hookimpl
def register_nodes(registry: OwnedRegistry) -> None:
    """Offer the node and a graph of it."""
    registry.add("node", "scripted", ScriptedModel, ScriptOptions)
    registry.add_graph(
        "scripted",
        {
            "nodes": {"model": {"kind": "scripted"}},
            "inputs": ["user_audio"],
            "links": ["user_audio -> model.audio"],
            "outputs": {
                "audio": "model.audio",
                "text": "model.text",
                "user_audio": "user_audio",
            },
        },
    )
