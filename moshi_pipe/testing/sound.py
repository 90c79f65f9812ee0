"""Whether a codec keeps the promises of :class:`moshi_pipe.models.protocols.Codec`.

Shape letters: B slot, C audio channel, N PCM sample, K codebook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moshi_pipe.models.protocols import Capabilities, Codec
from moshi_pipe.models.spec import CodecSpec
from moshi_pipe.testing.conformance import Output, Play, check_slots, require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_GARBAGE = -2
_TRIALS = 4


def check_codec(
    make: Callable[[], Codec],
    *,
    num_slots: int = 8,
    frames: int = 6,
    tolerance: float = 0.0,
) -> None:
    """Check a codec: spec, shapes and types, slots, masks, resets, and that frames are in time.

    Args:
        make: Opens the codec; called once.
        num_slots: Slots of the states that are tried; 4 or a multiple.
        frames: Frames per recording.
        tolerance: Largest difference of samples between runs that should be equal.

    Raises:
        ConformanceError: A promise is broken.
    """
    codec = make()
    require(isinstance(codec, Codec), "a codec lacks a member of Codec", got=_missing(codec))
    _check_description(codec)
    _check_forms(codec, num_slots)
    encoder, decoder = _Encoder(codec), _Decoder(codec)
    for subject in (encoder, decoder):
        check_slots(subject, num_slots=num_slots, frames=frames, tolerance=tolerance)
    _check_directions_apart(codec, encoder, decoder, num_slots, frames)
    _check_in_time(encoder, frames)
    _check_in_time(decoder, frames)
    _check_silence_after_nan(codec, encoder, num_slots, frames)


def _missing(codec: object) -> str:
    names = [name for name in dir(Codec) if not name.startswith("_") and not hasattr(codec, name)]
    return f"{type(codec).__name__} without {', '.join(names)}"


def _check_description(codec: Codec) -> None:
    require(isinstance(codec.spec, CodecSpec), "codec.spec is no CodecSpec", got=codec.spec)
    caps = codec.caps
    require(isinstance(caps, Capabilities), "codec.caps is no Capabilities", got=caps)
    try:
        torch.device(caps.device)
    except RuntimeError:
        require(False, "codec.caps.device is no device of torch", got=caps.device)


def _check_forms(codec: Codec, num_slots: int) -> None:
    """Shapes, types and ranges; that inputs are left alone; fewer codebooks."""
    spec, device = codec.spec, codec.caps.device
    everyone = torch.ones(num_slots, dtype=torch.bool, device=device)
    pcm_BCN = torch.stack([_sound(spec, Play(i, 0)) for i in range(num_slots)]).to(device)
    kept = pcm_BCN.clone()
    codes_BK = codec.encode(pcm_BCN, everyone, codec.new_encoder_state(num_slots))
    _check_tensor("encode", codes_BK, torch.int64, (num_slots, spec.num_codebooks), device)
    low, high = int(codes_BK.min()), int(codes_BK.max())
    require(
        low >= 0 and high < spec.cardinality,
        "encode gives codes outside the codebooks",
        got=f"{low} to {high}",
        wanted=f"0 to {spec.cardinality - 1}",
    )
    require(torch.equal(pcm_BCN, kept), "encode changes the audio that it was given")
    for num_codebooks in sorted({1, spec.num_codebooks // 2 or 1, spec.num_codebooks}):
        given_BK = codes_BK[:, :num_codebooks].clone()
        kept = given_BK.clone()
        audio = codec.decode(given_BK, everyone, codec.new_decoder_state(num_slots))
        what = f"decode of {num_codebooks} codebooks"
        shape = (num_slots, spec.channels, spec.frame_size)
        _check_tensor(what, audio, torch.float32, shape, device)
        require(torch.isfinite(audio).all(), f"{what} gives numbers that are not finite")
        require(torch.equal(given_BK, kept), "decode changes the codes that it was given")


def _check_tensor(
    what: str, tensor: Any, dtype: torch.dtype, shape: tuple[int, ...], device: str
) -> None:
    require(isinstance(tensor, torch.Tensor), f"{what} gives no tensor of torch", got=type(tensor))
    require(tensor.dtype == dtype, f"{what}: wrong type", got=tensor.dtype, wanted=str(dtype))
    require(
        tuple(tensor.shape) == shape,
        f"{what}: wrong shape",
        got=list(tensor.shape),
        wanted=str(list(shape)),
    )
    require(
        tensor.device.type == torch.device(device).type,
        f"{what}: on another device than caps.device",
        got=tensor.device,
        wanted=device,
    )


class _Encoder:
    name = "encode"

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._device = codec.caps.device

    def new(self, num_slots: int) -> Any:
        return self._codec.new_encoder_state(num_slots)

    def reset(self, state: Any, slots: Sequence[int]) -> None:
        self._codec.reset(state, slots)

    def step(self, state: Any, plays: Sequence[Play | None]) -> list[Output | None]:
        spec = self._codec.spec
        silence = torch.full((spec.channels, spec.frame_size), torch.nan)
        rows = [silence if play is None else _sound(spec, play) for play in plays]
        valid_B = _valid(plays).to(self._device)
        codes_BK = self._codec.encode(torch.stack(rows).to(self._device), valid_B, state)
        return _rows("codes", codes_BK, plays)


class _Decoder:
    name = "decode"

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._device = codec.caps.device

    def new(self, num_slots: int) -> Any:
        return self._codec.new_decoder_state(num_slots)

    def reset(self, state: Any, slots: Sequence[int]) -> None:
        self._codec.reset(state, slots)

    def step(self, state: Any, plays: Sequence[Play | None]) -> list[Output | None]:
        spec = self._codec.spec
        garbage = torch.full((spec.num_codebooks,), _GARBAGE)
        rows = [garbage if play is None else _column(spec, play) for play in plays]
        valid_B = _valid(plays).to(self._device)
        audio_BCN = self._codec.decode(torch.stack(rows).to(self._device), valid_B, state)
        return _rows("audio", audio_BCN, plays)


def _check_directions_apart(
    codec: Codec, encoder: _Encoder, decoder: _Decoder, num_slots: int, frames: int
) -> None:
    """Decoding, and a reset of the decoder, between two encodes must not be heard."""
    plays: list[list[Play | None]] = [[Play(i, t) for i in range(num_slots)] for t in range(frames)]
    listening, speaking = encoder.new(num_slots), decoder.new(num_slots)
    both: list[tuple[Output | None, Output | None]] = []
    for row in plays:
        heard = encoder.step(listening, row)[0]
        both.append((heard, decoder.step(speaking, row)[0]))
    encoder.reset(listening, range(num_slots))
    state = encoder.new(num_slots)
    for t, row in enumerate(plays):
        alone, wanted = encoder.step(state, row)[0], both[t][0]
        require(
            _equal(alone, wanted),
            "the encoder and the decoder share state: decoding changes what is encoded",
        )
    state = decoder.new(num_slots)
    for t, row in enumerate(plays):
        codec.reset(listening, [0])
        alone, wanted = decoder.step(state, row)[0], both[t][1]
        require(
            _equal(alone, wanted),
            "the encoder and the decoder share state: encoding, or its reset, changes the sound",
        )


def _check_in_time(subject: _Encoder | _Decoder, frames: int) -> None:
    """A frame must tell in the answer to that frame, not in a later one.

    Codes may be the same for two frames by chance, samples are not.
    """
    heard = 0
    for trial in range(_TRIALS):
        first, second = subject.new(1), subject.new(1)
        for t in range(frames - 1):
            same = subject.step(first, [Play(trial, t)]), subject.step(second, [Play(trial, t)])
            require(_equal(same[0][0], same[1][0]), f"{subject.name}: two equal runs differ")
        now = [Play(trial, frames - 1)], [Play(trial + 50, frames - 1)]
        heard += not _equal(subject.step(first, now[0])[0], subject.step(second, now[1])[0])
    require(
        heard if isinstance(subject, _Encoder) else heard == _TRIALS,
        f"{subject.name} does not answer to the frame that it is given",
        got=f"{_TRIALS - heard} of {_TRIALS} changed frames made no difference in their own step",
        wanted="the answer in the same step: an off-by-one delays everything that follows",
    )


def _check_silence_after_nan(codec: Codec, encoder: _Encoder, num_slots: int, frames: int) -> None:
    """A reset must clear what is not finite too."""
    spec, device = codec.spec, codec.caps.device
    state = encoder.new(num_slots)
    everyone = torch.ones(num_slots, dtype=torch.bool, device=device)
    poison = torch.full((num_slots, spec.channels, spec.frame_size), torch.nan, device=device)
    codec.encode(poison, everyone, state)
    encoder.reset(state, range(num_slots))
    fresh = encoder.new(num_slots)
    for t in range(frames):
        row: list[Play | None] = [Play(i, t) for i in range(num_slots)]
        require(
            _equal(encoder.step(state, row)[0], encoder.step(fresh, row)[0]),
            "a reset does not clear NaN out of the encoder's state",
            wanted="state that is zeroed, not only a position that is set back",
        )


def _sound(spec: CodecSpec, play: Play) -> Tensor:
    """One frame of noise and a tone, ``[C, N]`` in [-1, 1]."""
    generator = np.random.default_rng([play.stream, play.frame])
    noise = generator.uniform(-0.4, 0.4, (spec.channels, spec.frame_size))
    at = play.frame * spec.frame_size + np.arange(spec.frame_size)
    tone = 0.5 * np.sin(2 * np.pi * at * (play.stream % 7 + 1) / 37)
    return torch.from_numpy((noise + tone).astype(np.float32))


def _column(spec: CodecSpec, play: Play) -> Tensor:
    generator = np.random.default_rng([play.stream, play.frame, 1])
    return torch.from_numpy(generator.integers(0, spec.cardinality, spec.num_codebooks))


def _valid(plays: Sequence[Play | None]) -> Tensor:
    return torch.tensor([play is not None for play in plays])


def _rows(name: str, made: Tensor, plays: Sequence[Play | None]) -> list[Output | None]:
    host = made.detach().cpu().numpy().copy()
    return [None if play is None else {name: host[i]} for i, play in enumerate(plays)]


def _equal(one: Output | None, other: Output | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(np.array_equal(one[key], other[key], equal_nan=True) for key in one)
