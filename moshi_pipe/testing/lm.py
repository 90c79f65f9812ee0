"""Whether a language model keeps the promises of :class:`moshi_pipe.models.protocols.SpeechLM`.

Shape letters: B slot, S stream, K generated codebook, R noise draw, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moshi_pipe.errors import MoshiPipeError
from moshi_pipe.models.protocols import Capabilities, Controls, SpeechLM, Step
from moshi_pipe.models.spec import UNGENERATED, LMSpec
from moshi_pipe.testing.conformance import Output, Play, check_slots, differs, require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

_LOGITS = "text_logits_BV"
_MUTED = -1
_DRAWS = 8
_TRIALS = 4
_HISTORY = 3
_CHOSEN = 1e-6  # a draw that makes its candidate win; the others are 1e6
_CLOSE = 1e-3  # between logits of two candidates that may change places


def check_lm(
    make: Callable[[], SpeechLM],
    *,
    num_slots: int = 8,
    frames: int = 6,
    tolerance: float = 0.0,
    conditions: Mapping[str, str] | None = None,
) -> None:
    """Check a language model: forms, slots, masks, resets, timing, sampling and muted streams.

    Where ``Step.extra`` holds ``text_logits_BV``, logits are compared too, which finds more.

    Args:
        make: Opens the model; called once.
        num_slots: Slots of the states that are tried; 4 or a multiple.
        frames: Steps per session; more than the model's context also tries its ring.
        tolerance: Largest difference of logits between runs that should be equal.
        conditions: For a model that has some.

    Raises:
        ConformanceError: A promise is broken.
    """
    lm = make()
    missing = [n for n in dir(SpeechLM) if not n.startswith("_") and not hasattr(lm, n)]
    require(
        isinstance(lm, SpeechLM),
        "a language model lacks a member of SpeechLM",
        got=f"{type(lm).__name__} without {', '.join(missing)}",
    )
    require(isinstance(lm.spec, LMSpec), "lm.spec is no LMSpec", got=lm.spec)
    require(isinstance(lm.caps, Capabilities), "lm.caps is no Capabilities", got=lm.caps)
    model = _Model(lm, conditions)
    _check_forms(model, num_slots)
    _check_noise(model)
    check_slots(model, num_slots=num_slots, frames=frames, tolerance=tolerance)
    sampled = _Model(lm, conditions, temperature=0.9, name="sampling")
    check_slots(sampled, num_slots=num_slots, frames=frames, tolerance=tolerance)
    _check_in_time(model, frames)
    _check_greedy_beside_sampled(lm, conditions, num_slots, frames)
    _check_muted(model)
    _check_forced_text(model)
    _check_guidance(model, num_slots, frames, tolerance)


class _Model:
    """The model with greedy or sampled sessions."""

    def __init__(
        self,
        lm: SpeechLM,
        conditions: Mapping[str, str] | None,
        *,
        temperature: float = 0.0,
        rows_per_slot: int = 1,
        name: str = "greedy step",
    ) -> None:
        self.name = name
        self.lm = lm
        self.device = lm.caps.device
        self._conditions = conditions
        self._temperature = temperature
        self._rows_per_slot = rows_per_slot

    def new(self, num_slots: int) -> Any:
        state = self.lm.new_state(num_slots, self._rows_per_slot)
        if self._conditions is not None:
            self.lm.reset(state, range(num_slots), self._conditions)
        return state

    def reset(self, state: Any, slots: Sequence[int]) -> None:
        self.lm.reset(state, slots, self._conditions)

    def step(self, state: Any, plays: Sequence[Play | None]) -> list[Output | None]:
        spec = self.lm.spec
        garbage = torch.full((spec.num_streams,), UNGENERATED)
        column_BS = torch.stack([garbage if p is None else column(spec, p) for p in plays])
        controls = self.controls(len(plays))
        if self._temperature:
            shape = (1 + spec.num_generated, _DRAWS)
            noise = [np.ones(shape, np.float32) if p is None else _noise(p, shape) for p in plays]
            controls.noise_BKR = self.tensor(np.stack(noise))
        step = self.run(column_BS, [p is not None for p in plays], controls, state)
        host = outputs(step)
        return [
            None if play is None else {key: value[i] for key, value in host.items()}
            for i, play in enumerate(plays)
        ]

    def controls(self, num_slots: int) -> Controls:
        temperature_B = torch.full((num_slots,), self._temperature, device=self.device)
        top_k_B = torch.full((num_slots,), _DRAWS, dtype=torch.int64, device=self.device)
        guidance_B = torch.ones(num_slots, device=self.device) if self._rows_per_slot > 1 else None
        return Controls(
            temperature_B, temperature_B.clone(), top_k_B, top_k_B.clone(), guidance_B=guidance_B
        )

    def run(self, column_BS: Tensor, valid: Sequence[bool], controls: Controls, state: Any) -> Step:
        valid_B = torch.tensor(list(valid), device=self.device)
        return self.lm.step(column_BS.to(self.device), valid_B, controls, state)

    def first(self, column_S: Tensor, controls: Controls | None = None) -> Output:
        """What a fresh session answers to one column."""
        step = self.run(column_S[None], [True], controls or self.controls(1), self.new(1))
        return {key: value[0] for key, value in outputs(step).items()}

    def tensor(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def column(spec: LMSpec, play: Play) -> Tensor:
    """An input column ``[S]``: the initial one at first, then ids that follow from the play."""
    if play.frame == 0:
        return torch.tensor(spec.initial_codes)
    generator = np.random.default_rng([play.stream, play.frame, 2])
    codes = generator.integers(0, spec.cardinality, spec.num_codebooks)
    text = generator.integers(0, min(spec.text_cardinality, spec.text_head_size), 1)
    return torch.from_numpy(np.concatenate([text, codes]))


def outputs(step: Step) -> dict[str, Any]:
    """What a step gave, copied to the host."""
    found = {"text": step.text_B, "codes": step.codes_BK, "finite": step.finite_B}
    if _LOGITS in step.extra:
        found["logits"] = step.extra[_LOGITS]
    return {
        key: value.detach().float().cpu().numpy().copy()
        if value.dtype.is_floating_point
        else value.detach().cpu().numpy().copy()
        for key, value in found.items()
    }


def _noise(play: Play, shape: tuple[int, int]) -> Any:
    draws = np.random.default_rng([play.stream, play.frame, 3]).exponential(size=shape)
    return draws.astype(np.float32)


def _check_forms(model: _Model, num_slots: int) -> None:
    spec = model.lm.spec
    column_BS = torch.stack([column(spec, Play(i, 1)) for i in range(num_slots)])
    kept = column_BS.clone()
    step = model.run(column_BS, [True] * num_slots, model.controls(num_slots), model.new(num_slots))
    require(isinstance(step, Step), "step gives no Step", got=type(step))
    require(torch.equal(column_BS, kept), "step changes the column that it was given")
    wanted = {
        "text_B": (step.text_B, torch.int64, (num_slots,), spec.text_head_size),
        "codes_BK": (
            step.codes_BK,
            torch.int64,
            (num_slots, spec.num_generated),
            spec.cardinality,
        ),
        "finite_B": (step.finite_B, torch.bool, (num_slots,), 2),
    }
    for name, (tensor, dtype, shape, most) in wanted.items():
        require(tensor.dtype == dtype, f"{name}: wrong type", got=tensor.dtype, wanted=str(dtype))
        require(
            tuple(tensor.shape) == shape,
            f"{name}: wrong shape",
            got=list(tensor.shape),
            wanted=str(list(shape)),
        )
        if tensor.numel():
            low, high = int(tensor.min()), int(tensor.max())
            require(
                low >= 0 and high < most,
                f"{name}: outside its range",
                got=f"{low} to {high}",
                wanted=f"0 to {most - 1}",
            )
    require(bool(step.finite_B.all()), "finite_B is false for numbers that are finite")


def _check_in_time(model: _Model, frames: int) -> None:
    """Every stream of a column must tell in the answer to that column, not in a later one."""
    spec = model.lm.spec
    for stream in range(spec.num_streams):
        heard = 0
        for trial in range(_TRIALS):
            state, other = model.new(1), model.new(1)
            for t in range(min(frames, _HISTORY)):
                model.step(state, [Play(trial, t)])
                model.step(other, [Play(trial, t)])
            column_S = column(spec, Play(trial, frames))
            changed_S = column_S.clone()
            most = spec.cardinality if stream else min(spec.text_cardinality, spec.text_head_size)
            changed_S[stream] = (changed_S[stream] + 1 + trial) % most
            now = [
                outputs(model.run(c[None], [True], model.controls(1), at))
                for c, at in ((column_S, state), (changed_S, other))
            ]
            heard += any(differs(now[0][key], now[1][key], 0.0) for key in now[0])
        logits = _LOGITS in model.run(column_S[None], [True], model.controls(1), model.new(1)).extra
        # Tokens alone may stay the same by chance; logits do not.
        require(
            heard == _TRIALS if logits else heard,
            f"stream {stream} of a column does not tell in the answer to that column",
            got=f"{_TRIALS - heard} of {_TRIALS} changes made no difference in their own step",
            wanted="the answer in the same step; delays are the engine's, not the model's",
        )


def _check_noise(model: _Model) -> None:
    """The candidate with the smallest draw wins, by its rank among the candidates."""
    lm, spec = model.lm, model.lm.spec
    draws = min(_DRAWS, spec.text_head_size, spec.cardinality)
    controls = _Model(lm, None, temperature=1.0).controls(1)

    def choose(stream: int, rank: int) -> Output:
        """What is said when one stream is made to take a rank, and all others the first."""
        noise = np.full((1, 1 + spec.num_generated, draws), 1 / _CHOSEN, dtype=np.float32)
        noise[:, :, 0] = _CHOSEN
        noise[:, stream, 0] = 1 / _CHOSEN
        noise[:, stream, rank] = _CHOSEN
        given = replace(controls, noise_BKR=model.tensor(noise))
        return model.first(column(spec, Play(0, 1)), given)

    chosen = [choose(0, rank) for rank in range(draws)]
    for stream in range(1 + spec.num_generated):
        said = chosen if stream == 0 else [choose(stream, rank) for rank in range(draws)]
        tokens = {int(one["codes"][stream - 1] if stream else one["text"]) for one in said}
        require(
            len(tokens) == draws,
            "noise_BKR is not what decides: a tiny draw must make its candidate win",
            got=f"stream {stream}: {len(tokens)} different tokens for {draws} ranks",
            wanted=str(draws),
        )
    if "logits" in chosen[0]:
        logits_V = chosen[0]["logits"]
        ranked = np.sort(logits_V)[::-1]
        for rank, one in enumerate(chosen):
            off = abs(float(logits_V[int(one["text"])] - ranked[rank]))
            require(
                off <= _CLOSE,
                f"draw {rank} does not belong to the candidate of rank {rank}",
                got=f"a candidate whose logit is {off:.3g} away",
                wanted="candidates sorted from the most likely down",
            )
    ones = torch.ones_like(controls.top_k_B)
    noise_BKR = model.tensor(_noise(Play(0, 1), (1 + spec.num_generated, draws))[None])
    single = replace(controls, top_k_B=ones, text_top_k_B=ones, noise_BKR=noise_BKR)
    greedy = model.first(column(spec, Play(0, 1)))
    sampled = model.first(column(spec, Play(0, 1)), single)
    require(
        np.array_equal(greedy["text"], sampled["text"])
        and np.array_equal(greedy["codes"], sampled["codes"]),
        "sampling among one candidate (top_k 1) is not greedy",
    )


def _check_greedy_beside_sampled(
    lm: SpeechLM, conditions: Mapping[str, str] | None, num_slots: int, frames: int
) -> None:
    """A greedy slot must not notice that others sample."""
    greedy, sampled = _Model(lm, conditions), _Model(lm, conditions, temperature=0.9)
    alone, mixed = greedy.new(num_slots), sampled.new(num_slots)
    for t in range(frames):
        plays = [Play(i, t) for i in range(num_slots)]
        wanted = greedy.step(alone, plays)[0]
        column_BS = torch.stack([column(lm.spec, play) for play in plays])
        controls = sampled.controls(num_slots)
        controls.temperature_B[0] = controls.text_temperature_B[0] = 0.0
        shape = (1 + lm.spec.num_generated, _DRAWS)
        noise = np.stack([_noise(play, shape) for play in plays])
        controls.noise_BKR = sampled.tensor(noise)
        step = outputs(sampled.run(column_BS, [True] * num_slots, controls, mixed))
        require(
            wanted is not None
            and np.array_equal(step["text"][0], wanted["text"])
            and np.array_equal(step["codes"][0], wanted["codes"]),
            "a slot of temperature 0 is not greedy while others sample",
        )


def _check_muted(model: _Model) -> None:
    """-1 is taken, and is not the id 0."""
    spec = model.lm.spec
    column_S = column(spec, Play(3, 1))
    for stream in range(spec.num_streams):
        muted_S, zero_S = column_S.clone(), column_S.clone()
        muted_S[stream], zero_S[stream] = _MUTED, 0
        try:
            muted = model.first(muted_S)
        except MoshiPipeError:
            raise
        except Exception as error:
            require(False, f"-1 in stream {stream} is not taken", got=f"{type(error)}: {error}")
        require(bool(muted["finite"]), f"-1 in stream {stream} gives numbers that are not finite")
        if "logits" in muted:
            zero = model.first(zero_S)
            require(
                differs(muted["logits"], zero["logits"], 0.0) is not None,
                f"-1 in stream {stream} is taken for the id 0",
                wanted="nothing of the stream: -1 mutes it",
            )
    everything = model.first(torch.full_like(column_S, _MUTED))
    require(bool(everything["finite"]), "a column of -1 gives numbers that are not finite")


def _check_forced_text(model: _Model) -> None:
    spec = model.lm.spec
    for token in (0, spec.text_padding_id, spec.text_head_size - 1):
        controls = model.controls(2)
        controls.forced_text_B = torch.tensor([token, UNGENERATED], device=model.device)
        column_BS = torch.stack([column(spec, Play(1, 1))] * 2)
        free = outputs(model.run(column_BS, [True] * 2, model.controls(2), model.new(2)))
        forced = outputs(model.run(column_BS, [True] * 2, controls, model.new(2)))
        require(
            int(forced["text"][0]) == token,
            "forced_text_B is not obeyed",
            got=int(forced["text"][0]),
            wanted=str(token),
        )
        require(
            int(forced["text"][1]) == int(free["text"][1]),
            "forced_text_B of -2 must leave a slot free",
        )


def _check_guidance(model: _Model, num_slots: int, frames: int, tolerance: float) -> None:
    """With two rows per slot and weight 1, a session is as without; a model may refuse them."""
    guided = _Model(model.lm, model._conditions, rows_per_slot=2, name="guided step")
    try:
        state = guided.new(num_slots)
    except MoshiPipeError:
        return
    plain = model.new(num_slots)
    for t in range(frames):
        plays = [Play(i, t) for i in range(num_slots)]
        got, wanted = guided.step(state, plays), model.step(plain, plays)
        for slot in range(num_slots):
            one, other = got[slot] or {}, wanted[slot] or {}
            for key in ("text", "codes"):
                difference = differs(one[key], other[key], tolerance)
                require(
                    difference is None,
                    "guidance of weight 1 changes what a session says",
                    got=f"'{key}' of step {t}, slot {slot}: {difference}",
                )
