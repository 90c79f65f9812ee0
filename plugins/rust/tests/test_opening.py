"""What the hooks open, and what they say when they cannot."""

from __future__ import annotations

import dataclasses
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from moshi_pipe_rust import native, opening, plugin
from moshi_pipe_rust.fallback import RustymimiCodec
from rust_models import speech
from safetensors.torch import save_file
from support.formats import BASE, LMS, open_lm_at, write_lm
from support.golden import BASE_LM

from moshi_pipe.builtin import TorchBackend
from moshi_pipe.errors import BackendError
from moshi_pipe.hooks import BackendOptions
from moshi_pipe.models.checkpoint import Checkpoint, ModelOptions, open_checkpoint
from moshi_pipe.models.formats.contents import FORMATS
from moshi_pipe.models.protocols import Controls, SpeechLM
from moshi_pipe.models.spec import LMSpec, MimiSpec
from moshi_pipe.nn.convert import convert
from moshi_pipe.plugins import load_plugins

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def embedded() -> Checkpoint:
    return open_checkpoint(ModelOptions())


def ignore(done: int, total: int) -> None:
    assert 0 <= done <= total


def open_lm(checkpoint: Checkpoint, **options: Any) -> Any:
    return opening.open_lm(checkpoint, BackendOptions(backend="rust", **options), ignore)


def test_other_backends_are_left_to_others(embedded: Checkpoint) -> None:
    options = BackendOptions(backend="torch")

    assert plugin.open_codec(embedded, options, ignore) is None
    assert plugin.open_lm(embedded, options, ignore) is None


def test_the_embedded_model_opens_by_its_name(embedded: Checkpoint) -> None:
    plugins = load_plugins([("rust", plugin)], installed=False)
    options = BackendOptions(backend="rust", context=7)

    codec = plugins.open_codec(embedded, options, ignore)
    lm = plugins.open_lm(embedded, options, ignore)

    assert (codec.caps.backend, lm.caps.backend) == ("rust", "rust")
    assert lm.spec.temporal.context == 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quant": "int4"}, "no quantization 'int4'"),
        ({"device": "cuda"}, "no device 'cuda' here"),
        ({"device": "npu"}, "no device 'npu' here"),
        ({"dtype": "float16"}, "does not run dtype=float16 on cpu"),
        ({"kv_dtype": "int8"}, "does not run kv_dtype=int8 on cpu"),
    ],
)
def test_what_it_cannot_do_is_said_with_a_fix(
    embedded: Checkpoint, options: dict[str, str], said: str
) -> None:
    with pytest.raises(BackendError, match=said) as caught:
        open_lm(embedded, **options)
    assert caught.value.fix is not None


def test_foreign_forms_are_refused(embedded: Checkpoint) -> None:
    foreign = LMSpec.from_config(BASE_LM | {"norm": "layer_norm", "bias_proj": True})
    config = dataclasses.replace(embedded.config, lm=foreign)
    with pytest.raises(BackendError, match="norm=layer_norm") as caught:
        open_lm(dataclasses.replace(embedded, config=config))
    assert "bias_proj" in str(caught.value)


def logits_of(lm: SpeechLM) -> torch.Tensor:
    """Text logits and likeliest codes of given columns over more than three contexts."""
    state, valid_B = lm.new_state(1), torch.ones(1, dtype=torch.bool)
    zeros, counts = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    columns = torch.randint(0, 32, (3 * BASE["context"] + 2, 1, 9), generator=torch.Generator())
    steps = [
        lm.step(column_BS, valid_B, Controls(zeros, zeros, counts, counts), state)
        for column_BS in columns
    ]
    rows = [torch.cat([s.extra["text_logits_BV"], s.codes_BK.float()], dim=1) for s in steps]
    return torch.cat(rows)


@pytest.mark.parametrize("name", ["packable", "shared sets, low rank", "conditions"])
@pytest.mark.parametrize("to", FORMATS)
def test_every_format_is_read_as_torch_reads_it(tmp_path: Path, to: str, name: str) -> None:
    write_lm(tmp_path / "a", LMS[name])
    convert(open_lm_at(tmp_path / "a"), tmp_path / "b", to=to)
    there = open_lm_at(tmp_path / "b")

    ours = open_lm(there, dtype="float32")
    theirs = TorchBackend().open_lm(there, BackendOptions(dtype="float32"), ignore)

    assert theirs is not None
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), rtol=0, atol=1e-3)
    plain = to in opening.PLAIN_FORMATS
    held = "weights stay bfloat16, as in the file" if plain else f"widened from {to}"
    assert ours.caps.quant == held


def test_lora_is_added(tmp_path: Path) -> None:
    write_lm(tmp_path, LMS["moshi"])
    plain = logits_of(open_lm(open_lm_at(tmp_path), dtype="float32"))
    generator = torch.Generator().manual_seed(0)
    halves = {"lora_A": (4, 64), "lora_B": (48, 4)}
    save_file(
        {f"text_linear.{k}.weight": torch.randn(v, generator=generator) for k, v in halves.items()},
        tmp_path / "lora.safetensors",
    )
    write_lm(tmp_path, LMS["moshi"], lora=True, lora_scaling=0.5, lora_name="lora.safetensors")
    adapted = open_lm_at(tmp_path)

    lm = open_lm(adapted, dtype="float32")
    theirs = TorchBackend().open_lm(adapted, BackendOptions(dtype="float32"), ignore)

    assert theirs is not None
    torch.testing.assert_close(logits_of(lm), logits_of(theirs), rtol=0, atol=1e-3)
    assert (logits_of(lm) - plain).abs().max() > 0.1
    assert lm.caps.quant == "widened from torch, LoRA added"


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moshi_pipe_rust._native", None)


@pytest.mark.usefixtures("unbuilt")
def test_without_the_extension_the_build_command_is_named(
    embedded: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match="not built here") as caught:
        open_lm(embedded)
    assert caught.value.fix == native.BUILD

    monkeypatch.setitem(sys.modules, "rustymimi", None)
    with pytest.raises(BackendError, match="neither its extension nor rustymimi"):
        opening.open_codec(embedded, ignore)


class FakeTokenizer:
    """As rustymimi's: it counts frames, and cannot start anew."""

    made = 0

    def __init__(self, path: str, *, num_codebooks: int, max_seq_len: int) -> None:
        type(self).made += 1
        self.num_codebooks = num_codebooks
        self.frames = 0
        assert max_seq_len >= 100_000

    def encode_step(self, pcm: np.ndarray) -> np.ndarray:
        assert pcm.shape == (1, 1, 1920)
        assert pcm.dtype == np.float32
        self.frames += 1
        return np.full((1, self.num_codebooks, 1), self.frames, dtype=np.uint32)

    def decode_step(self, codes: np.ndarray) -> np.ndarray:
        assert codes.shape == (1, self.num_codebooks, 1)
        assert codes.dtype == np.uint32
        self.frames += 1
        return np.full((1, 1, 1920), self.frames, dtype=np.float32)


@pytest.mark.usefixtures("unbuilt")
def test_the_fallback_gives_every_stream_a_tokenizer_of_its_own(
    embedded: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = types.ModuleType("rustymimi")
    fake.Tokenizer = FakeTokenizer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rustymimi", fake)
    with pytest.raises(BackendError, match="knows only the released codec"):
        opening.open_codec(embedded, ignore)
    weights = tmp_path / "mimi.safetensors"
    weights.touch()
    released = dataclasses.replace(embedded, mimi=MimiSpec(), mimi_weights=weights)
    codec = opening.open_codec(released, ignore)
    assert isinstance(codec, RustymimiCodec)
    assert codec.caps.backend == "rustymimi"
    state = codec.new_encoder_state(2)
    pcm_BCN = torch.zeros(2, 1, 1920)
    seen = []
    for tick, valid in enumerate([(1, 1), (1, 0), (1, 1), (1, 1)]):
        if tick == 3:
            codec.reset(state, [0])
        seen.append(codec.encode(pcm_BCN, torch.tensor(valid) > 0, state)[:, 0].tolist())

    assert seen == [[1, 1], [2, 0], [3, 2], [1, 3]]
    decoder = codec.new_decoder_state(1)
    everyone = torch.tensor([True])
    assert codec.decode(torch.zeros(1, 3, dtype=torch.int64), everyone, decoder)[0, 0, 0] == 1
    with pytest.raises(BackendError, match="one number of codes"):
        codec.decode(torch.zeros(1, 4, dtype=torch.int64), everyone, decoder)
    with pytest.raises(BackendError, match="not in the codebook"):
        codec.decode(torch.full((1, 3), 2048), everyone, decoder)


def test_the_fallback_with_the_real_package(
    embedded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released shape with random weights, until the transformers' window is full.

    From then on rustymimi 0.4.1 differs from PyTorch, and the extension does not.
    """
    pytest.importorskip("rustymimi")
    from moshi_pipe.models.make_checkpoint import make_checkpoint

    make_checkpoint(tmp_path, preset="medium", kind="stt")
    checkpoint = open_checkpoint(ModelOptions(path=str(tmp_path)), parts=["mimi"])
    ours = opening.open_codec(checkpoint, ignore)
    torchs = load_plugins(installed=False).open_codec(checkpoint, BackendOptions(), ignore)
    monkeypatch.setitem(sys.modules, "moshi_pipe_rust._native", None)
    theirs = opening.open_codec(checkpoint, ignore)
    assert isinstance(theirs, RustymimiCodec)
    codecs = [torchs, ours, theirs]
    window = 125
    frames = speech(window + 10, MimiSpec())
    everyone = torch.tensor([True])
    encoders = [codec.new_encoder_state(1) for codec in codecs]
    decoders = [codec.new_decoder_state(1) for codec in codecs]
    for i, frame in enumerate(frames):
        compared = slice(1, 3 if i < window else 2)
        codes = [c.encode(frame, everyone, s) for c, s in zip(codecs, encoders, strict=True)]
        assert all(torch.equal(other, codes[0]) for other in codes[compared])
        audio = [c.decode(codes[0], everyone, s) for c, s in zip(codecs, decoders, strict=True)]
        for other in audio[compared]:
            torch.testing.assert_close(
                other, audio[0], atol=1e-5 * max(1.0, float(audio[0].abs().max())), rtol=0
            )
