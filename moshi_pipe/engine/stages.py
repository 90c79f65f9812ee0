"""The three stages of a dialogue as batched nodes: encode, language model, decode.

Shape letters: B slot, C audio channel, N PCM sample, K codebook, R noise draw.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moshi_pipe.engine.delay_line import DelayLine, DelayState
from moshi_pipe.engine.noise import fill_exponential
from moshi_pipe.engine.slots import tick_sizes
from moshi_pipe.errors import ConfigError, SessionError
from moshi_pipe.graph.format import Audio, Codes, Text
from moshi_pipe.graph.node import FIRST_FRAMES, BatchedNode, SessionSettings, Tick, Value
from moshi_pipe.models.protocols import Codec, Controls, Keeping, SpeechLM
from moshi_pipe.nn.cuda_graph import GraphedCall
from moshi_pipe.nn.transfer import HostCopy, to_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor

_WARM_UP_STEPS = 2


class EncodeStage(BatchedNode):
    """Audio to codes: port ``audio`` in, ``codes`` out.

    With the first-frame policy ``reset``, a session's first frame is encoded and then forgotten,
    as the reference's server does, so that the second one gets the start-of-stream padding.

    Args:
        codec: The codec; only its encoder is used.
        graphs: On CUDA, replay graphs.
    """

    def __init__(self, codec: Codec, *, graphs: bool = False) -> None:
        spec = codec.spec
        self.inputs = {"audio": Audio(spec.sample_rate, spec.frame_size, spec.channels)}
        self.outputs = {"codes": Codes(spec.num_codebooks, spec.cardinality, spec.frame_rate)}
        self._codec = codec
        self._device = torch.device(codec.caps.device)
        self._state: Any = None
        self._call = GraphedCall(self._compute, self._device, enabled=graphs)
        self._forget_first: set[int] = set()

    def open(self, num_slots: int) -> None:
        """Make state and warm up."""
        self._state = self._codec.new_encoder_state(num_slots)
        spec = self._codec.spec
        silence = torch.zeros(num_slots, spec.channels, spec.frame_size, device=self._device)
        everyone = torch.ones(num_slots, dtype=torch.bool, device=self._device)
        for _ in range(_WARM_UP_STEPS):
            self._codec.encode(silence, everyone, self._state)
        for n in reversed(tick_sizes(num_slots)):
            self._call.prepare(silence[:n], everyone[:n])
        self._codec.reset(self._state, range(num_slots))

    def join(self, slot: int, settings: SessionSettings) -> None:
        """Begin a session: its encoder knows nothing."""
        self._codec.reset(self._state, [slot])
        self._forget_first.discard(slot)
        if settings.first_frame == "reset":
            self._forget_first.add(slot)

    @property
    def can_snapshot(self) -> bool:
        """Whether the codec can."""
        return isinstance(self._codec, Keeping)

    def snapshot(self, slot: int) -> dict[str, Any]:
        """Copy what the encoder remembers."""
        forget = np.array(slot in self._forget_first)
        return {"codec": _keeping(self._codec).snapshot(self._state, slot), "forget": forget}

    def restore(self, slot: int, snapshot: Mapping[str, Any], settings: SessionSettings) -> None:
        """Go on with a session."""
        _keeping(self._codec).restore(self._state, slot, snapshot["codec"])
        self._forget_first.discard(slot)
        if snapshot["forget"]:
            self._forget_first.add(slot)

    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        """Encode one frame of every slot that has one."""
        audio = inputs["audio"]
        valid = audio.valid & tick.active
        (codes_BK,) = self._call(audio.tensor, to_device(valid, self._device))
        forget = [slot for slot in self._forget_first if slot < tick.n and valid[slot]]
        if forget:
            self._codec.reset(self._state, forget)
            self._forget_first.difference_update(forget)
        return {"codes": Value(codes_BK, valid)}

    def close(self) -> None:
        """Drop the state and the graphs over it."""
        self._state = None
        self._call.clear()

    def _compute(self, pcm_BCN: Tensor, valid_B: Tensor) -> tuple[Tensor, ...]:
        return (self._codec.encode(pcm_BCN, valid_B, self._state),)


class DecodeStage(BatchedNode):
    """Codes to audio: port ``codes`` in, ``audio`` out.

    Args:
        codec: The codec; only its decoder is used.
        num_codebooks: Codebooks that come in, at most the codec's.
        graphs: On CUDA, replay graphs.
    """

    def __init__(
        self, codec: Codec, num_codebooks: int | None = None, *, graphs: bool = False
    ) -> None:
        spec = codec.spec
        num_codebooks = num_codebooks or spec.num_codebooks
        self.inputs = {"codes": Codes(num_codebooks, spec.cardinality, spec.frame_rate)}
        self.outputs = {"audio": Audio(spec.sample_rate, spec.frame_size, spec.channels)}
        self._codec = codec
        self._num_codebooks = num_codebooks
        self._device = torch.device(codec.caps.device)
        self._state: Any = None
        self._call = GraphedCall(self._compute, self._device, enabled=graphs)
        self._last: tuple[Tensor, HostCopy | None, npt.NDArray[np.bool_]] | None = None

    def open(self, num_slots: int) -> None:
        """Make state and warm up."""
        self._state = self._codec.new_decoder_state(num_slots)
        zeros = torch.zeros(num_slots, self._num_codebooks, dtype=torch.int64, device=self._device)
        everyone = torch.ones(num_slots, dtype=torch.bool, device=self._device)
        for _ in range(_WARM_UP_STEPS):
            self._codec.decode(zeros, everyone, self._state)
        for n in reversed(tick_sizes(num_slots)):
            self._call.prepare(zeros[:n], everyone[:n])
        self._codec.reset(self._state, range(num_slots))

    def join(self, slot: int, settings: SessionSettings) -> None:
        """Begin a session: its decoder knows nothing."""
        self._codec.reset(self._state, [slot])

    @property
    def can_snapshot(self) -> bool:
        """Whether the codec can."""
        return isinstance(self._codec, Keeping)

    def snapshot(self, slot: int) -> dict[str, Any]:
        """Copy what the decoder remembers."""
        return {"codec": _keeping(self._codec).snapshot(self._state, slot)}

    def restore(self, slot: int, snapshot: Mapping[str, Any], settings: SessionSettings) -> None:
        """Go on with a session."""
        _keeping(self._codec).restore(self._state, slot, snapshot["codec"])

    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        """Decode one frame of every slot that has one."""
        codes = inputs["codes"]
        valid = codes.valid & tick.active
        audio_BCN, *finite_B = self._call(codes.tensor, to_device(valid, self._device))
        self._last = (audio_BCN, HostCopy(finite_B[0]) if finite_B else None, valid)
        return {"audio": Value(audio_BCN, valid)}

    def failed(self) -> Sequence[int]:
        """Slots whose audio was not finite."""
        if self._last is None:
            return ()
        audio_BCN, finite_B, valid = self._last
        if finite_B is not None:
            finite = finite_B.numpy()
        elif math.isfinite(float(audio_BCN.sum())):  # nearly always, and quick
            return ()
        else:
            finite = _finite_rows(audio_BCN).cpu().numpy()
        return [int(slot) for slot in np.flatnonzero(valid & ~finite)]

    def close(self) -> None:
        """Drop the state and the graphs over it."""
        self._state = self._last = None
        self._call.clear()

    def _compute(self, codes_BK: Tensor, valid_B: Tensor) -> tuple[Tensor, ...]:
        audio_BCN = self._codec.decode(codes_BK, valid_B, self._state)
        if self._device.type != "cuda":
            return (audio_BCN,)
        return audio_BCN, _finite_rows(audio_BCN)


class LMStage(BatchedNode):
    """The language model between two delay lines: ``user_codes`` in, ``codes`` and ``text`` out.

    Args:
        lm: The model.
        guided: Hold a second row per slot for classifier-free guidance.
        max_candidates: Largest top-k that a session may ask for; 0 allows unlimited top-k.
        frame_rate: Frames per second of the codec.
        graphs: On CUDA, replay graphs. They hold what any session may ask for, sampling and the
            repetition penalty among it, so that none is captured when one joins; results are the
            same.
    """

    def __init__(
        self,
        lm: SpeechLM,
        *,
        frame_rate: Any,
        guided: bool = False,
        max_candidates: int = 250,
        graphs: bool = False,
    ) -> None:
        spec = lm.spec
        self.inputs = {}
        if spec.num_user:
            self.inputs["user_codes"] = Codes(spec.num_user, spec.cardinality, frame_rate)
        self.outputs = {"text": Text(spec.text_cardinality, frame_rate)}
        if spec.num_generated:
            self.outputs["codes"] = Codes(spec.num_generated, spec.cardinality, frame_rate)
        self._lm = lm
        self._guided = guided
        largest = max(spec.cardinality, spec.text_cardinality)
        self._max_candidates = min(max_candidates or largest, largest)
        self._device = torch.device(lm.caps.device)
        self._line = DelayLine(spec, self._device)
        self._call = GraphedCall(self._compute, self._device, enabled=graphs)
        self._open: _Running | None = None

    def open(self, num_slots: int) -> None:
        """Make state and warm up."""
        spec = self._lm.spec
        state = self._lm.new_state(num_slots, 2 if self._guided else 1)
        controls = _controls(num_slots, self._device, guided=self._guided)
        noise = np.ones((num_slots, 1 + spec.num_generated, self._max_candidates), dtype=np.float32)
        self._open = _Running(state, self._line.new_state(num_slots), controls, noise, num_slots)
        initial_S = torch.tensor(spec.initial_codes, device=self._device)
        column_BS = initial_S.expand(num_slots, -1)
        idle = torch.zeros(num_slots, dtype=torch.bool, device=self._device)
        warm = _controls(num_slots, self._device, guided=self._guided)
        for row_B in (warm.temperature_B, warm.text_temperature_B):
            row_B.fill_(1)  # sampling is warmed up too
        for row_B in (warm.top_k_B, warm.text_top_k_B):
            row_B.fill_(self._max_candidates)
        fill_exponential(noise[0], seed=0, step=0)
        warm.noise_BKR = noise_BKR = torch.from_numpy(noise).to(self._device)
        for _ in range(_WARM_UP_STEPS):
            self._lm.step(column_BS, idle, warm, state)
        if not self._call.enabled:
            return
        controls.repetition_penalty_B = torch.ones_like(controls.temperature_B)
        user_BK = torch.zeros(num_slots, spec.num_user, dtype=torch.int64, device=self._device)
        for n in reversed(tick_sizes(num_slots)):
            self._call.prepare(user_BK[:n], idle[:n], noise_BKR[:n])

    def join(self, slot: int, settings: SessionSettings) -> None:
        """Begin a session with its settings.

        Raises:
            ConfigError: A setting that this stage was not made for.
        """
        running = self._running()
        self._check(settings)
        self._lm.reset(running.state, [slot], settings.conditions or None)
        self._line.reset(running.delays, [slot])
        running.num_steps[slot] = 0
        running.settings[slot] = settings
        _set_row(running.controls, slot, settings)

    def leave(self, slot: int) -> None:
        """End the session; its settings no longer shape the batch."""
        self._running().settings[slot] = None

    @property
    def can_snapshot(self) -> bool:
        """Whether the model can."""
        return isinstance(self._lm, Keeping)

    def snapshot(self, slot: int) -> dict[str, Any]:
        """Copy what the model and the delay line remember; noise follows from the step."""
        running = self._running()
        return {
            "lm": _keeping(self._lm).snapshot(running.state, slot),
            "delays": self._line.snapshot(running.delays, slot),
            "num_steps": running.num_steps[slot].copy(),
        }

    def restore(self, slot: int, snapshot: Mapping[str, Any], settings: SessionSettings) -> None:
        """Go on with a session.

        Raises:
            ConfigError: A setting that this stage was not made for.
        """
        running = self._running()
        self._check(settings)
        _keeping(self._lm).restore(running.state, slot, snapshot["lm"])
        self._line.restore(running.delays, slot, snapshot["delays"])
        running.num_steps[slot] = snapshot["num_steps"]
        running.settings[slot] = settings
        _set_row(running.controls, slot, settings)

    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        """Advance every session that heard something, or whose input just ended."""
        running = self._running()
        user_BK, valid = self._heard(inputs, tick)
        twice = np.array([self._steps_twice(slot, tick) for slot in range(tick.n)]) & valid
        if twice.any():
            self._advance(user_BK, twice, running)
        text_B, codes_BK = self._advance(user_BK, valid, running)
        complete = valid & (running.num_steps[: tick.n] > self._lm.spec.max_delay)
        out = {"text": Value(text_B, complete)}
        if self._lm.spec.num_generated:
            out["codes"] = Value(codes_BK, complete)
        return out

    def failed(self) -> Sequence[int]:
        """Slots whose logits were not finite."""
        last = self._running().last
        if last is None:
            return ()
        finite_B, valid = last
        finite = finite_B.numpy()
        return [int(slot) for slot in np.flatnonzero(valid & ~finite)]

    def close(self) -> None:
        """Drop the state and the graphs over it."""
        self._open = None
        self._call.clear()

    def _heard(
        self, inputs: Mapping[str, Value], tick: Tick
    ) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """User codes of this tick, with end codes where a session's input just ended."""
        spec = self._lm.spec
        if not spec.num_user:
            return torch.zeros(tick.n, 0, dtype=torch.int64, device=self._device), tick.active
        user = inputs["user_codes"]
        valid = (user.valid | tick.end_codes) & tick.active
        user_BK = user.tensor[:, : spec.num_user]
        if tick.end_codes.any():
            ended_B1 = to_device(tick.end_codes, self._device)[:, None]
            user_BK = torch.where(ended_B1, spec.cardinality, user_BK)
        return user_BK, valid

    def _steps_twice(self, slot: int, tick: Tick) -> bool:
        """Whether this is a first frame that is stepped twice, its first result dropped.

        The model ignores what it hears in its first step; the reference's file command makes up
        for it this way. Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/run_inference.py.
        """
        settings = self._running().settings[slot]
        first = self._running().num_steps[slot] == 0
        return bool(
            tick.active[slot] and first and settings and settings.first_frame == "duplicate"
        )

    @torch.inference_mode()
    def _advance(
        self, user_BK: Tensor, valid: npt.NDArray[np.bool_], running: _Running
    ) -> tuple[Tensor, Tensor]:
        noise_BKR = self._fill_noise(valid, running)
        text_B, codes_BK, finite_B = self._call(user_BK, to_device(valid, self._device), noise_BKR)
        running.num_steps[: len(valid)] += valid
        running.last = (HostCopy(finite_B), valid)
        return text_B, codes_BK

    def _compute(
        self, user_BK: Tensor, valid_B: Tensor, noise_BKR: Tensor | None
    ) -> tuple[Tensor, ...]:
        """A step between the delay lines; what a graph holds."""
        running = self._running()
        running.controls.noise_BKR = noise_BKR
        column_BS = self._line.push_user(user_BK, valid_B, running.delays)
        step = self._lm.step(column_BS, valid_B, running.controls, running.state)
        text_B, codes_BK = self._line.push_generated(
            step.text_B, step.codes_BK, valid_B, running.delays
        )
        return text_B, codes_BK, step.finite_B

    def _fill_noise(self, valid: npt.NDArray[np.bool_], running: _Running) -> Tensor | None:
        """Draws of this step on the device; None when all are greedy and no graph wants them."""
        sampled = self._call.enabled
        for slot in np.flatnonzero(valid):
            settings = running.settings[slot]
            if settings is None or not (settings.temperature or settings.text_temperature):
                continue
            sampled = True
            step = int(running.num_steps[slot])
            fill_exponential(running.noise[slot], seed=settings.seed, step=step)
        return to_device(running.noise[: len(valid)], self._device) if sampled else None

    def _check(self, settings: SessionSettings) -> None:
        """Refuse settings that the state was not sized for."""
        if settings.first_frame not in FIRST_FRAMES:
            raise ConfigError(
                "unknown first-frame policy",
                got=settings.first_frame,
                wanted=", ".join(FIRST_FRAMES),
            )
        if settings.guidance != 1.0 and not self._guided:
            raise ConfigError(
                "this engine was made without guidance",
                got=f"guidance {settings.guidance:g}",
                fix="set sampling.guidance for the whole run",
            )
        spec = self._lm.spec
        for name, wanted, largest in (
            ("top_k", settings.top_k, spec.cardinality),
            ("text_top_k", settings.text_top_k, spec.text_cardinality),
        ):
            needed = min(wanted or largest, largest)
            if needed > self._max_candidates:
                raise ConfigError(
                    f"{name} is larger than this engine was made for",
                    got=str(wanted or "unlimited (0)"),
                    wanted=f"1 to {self._max_candidates}",
                )

    def _running(self) -> _Running:
        if self._open is None:
            raise RuntimeError("the language model stage is not open")
        return self._open


class _Running:
    """What an open :class:`LMStage` holds."""

    def __init__(
        self,
        state: Any,
        delays: DelayState,
        controls: Controls,
        noise: npt.NDArray[np.float32],
        num_slots: int,
    ) -> None:
        self.state = state
        self.delays = delays
        self.controls = controls
        self.noise = noise
        self.num_steps = np.zeros(num_slots, dtype=np.int64)
        self.settings: list[SessionSettings | None] = [None] * num_slots
        self.last: tuple[HostCopy, npt.NDArray[np.bool_]] | None = None


def _controls(num_slots: int, device: torch.device, *, guided: bool) -> Controls:
    """Controls of greedy, unguided sessions."""
    zeros = torch.zeros(num_slots, device=device)
    counts = torch.zeros(num_slots, dtype=torch.int64, device=device)
    ones = torch.ones(num_slots, device=device)
    return Controls(
        temperature_B=zeros,
        text_temperature_B=zeros.clone(),
        top_k_B=counts,
        text_top_k_B=counts.clone(),
        guidance_B=ones if guided else None,
    )


def _set_row(controls: Controls, slot: int, settings: SessionSettings) -> None:
    controls.temperature_B[slot] = settings.temperature
    controls.text_temperature_B[slot] = settings.text_temperature
    controls.top_k_B[slot] = settings.top_k
    controls.text_top_k_B[slot] = settings.text_top_k
    if controls.guidance_B is not None:
        controls.guidance_B[slot] = settings.guidance
    if settings.repetition_penalty != 1.0 and controls.repetition_penalty_B is None:
        controls.repetition_penalty_B = torch.ones_like(controls.temperature_B)
    if controls.repetition_penalty_B is not None:
        controls.repetition_penalty_B[slot] = settings.repetition_penalty


def _keeping(model: Codec | SpeechLM) -> Keeping:
    """A model that can keep sessions.

    Raises:
        SessionError: It cannot.
    """
    if isinstance(model, Keeping):
        return model
    raise SessionError(
        "the state of a session cannot be kept",
        got=f"backend '{model.caps.backend}', which cannot",
        fix="choose backend=torch",
    )


def _finite_rows(audio_BCN: Tensor) -> Tensor:
    return torch.isfinite(audio_BCN).flatten(1).all(dim=1)
