"""Throw bytes at everything that reads what clients send: ``python scripts/fuzz.py``.

Messages, queries, Ogg pages and audio of both kinds get inputs drawn by seed: noise, and good ones
that were damaged. None may raise, hang or keep memory. Prints one line for each; the exit code is 1
after the first input that broke something, which is printed with how to get it again.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote_from_bytes

import numpy as np

from moshi_pipe.server.guard import escaped
from moshi_pipe.server.messages import AudioFormat, Kind, MessageError, build, parse
from moshi_pipe.server.ogg import MAX_PAGE_BYTES, PageReader, build_page, opus_head
from moshi_pipe.server.opus import OpusDecoder, OpusEncoder, PcmDecoder, packet_samples
from moshi_pipe.server.request import PARAMETERS, BadRequest, parse_request

INPUTS = 100_000
MAX_GROWTH = 512 * 1024
"""Bytes that a target may hold more at its end than after its first tenth."""

MAX_PEAK_GROWTH_KIB = 8 * 1024
"""KiB that the process may take beyond what it took in the first tenth: sees libraries, too."""

_LIFE = 250  # inputs that one reader or decoder takes: they have state, which is part of the test
_MAX_INPUT = 1_500
_WARM = 0.1
_FACTS = {
    "sample_rate": 24_000,
    "frame_samples": 1_920,
    "limits": {"max_s": 600.0},
    "settings": {
        "audio_temperature": {"min": 0.0, "max": 2.0},
        "text_temperature": {"min": 0.0, "max": 2.0},
        "audio_topk": {"min": 1, "max": 250},
        "text_topk": {"min": 1, "max": 250},
        "repetition_penalty": {"min": 1.0, "max": 2.0},
        "max_s": {"min": 1.0, "max": 600.0},
    },
}

Draw = Callable[[], bytes]
Take = Callable[[bytes], None]


@dataclass(frozen=True)
class Verdict:
    """What became of one target.

    Attributes:
        name: Of the target.
        inputs: How many it was given.
        seconds: How long that took.
        growth: Bytes that it held more in the end than after the first tenth.
        peak_kib: KiB by which the process's peak rose since then.
        failure: What went wrong; None if nothing did.
    """

    name: str
    inputs: int
    seconds: float
    growth: int
    peak_kib: int
    failure: str | None = None

    def line(self) -> str:
        """For people."""
        said = self.failure or "ok"
        return (
            f"{self.name:9} {self.inputs:7} inputs {self.seconds:6.1f} s "
            f"{self.growth / 1024:+8.1f} KiB held {self.peak_kib:+6} KiB peak  {said}"
        )


def fuzz(name: str, inputs: int = INPUTS, seed: int = 0, limit_s: float = 600.0) -> Verdict:
    """Throw inputs at a target.

    Args:
        name: One of :data:`TARGETS`.
        inputs: How many.
        seed: Of the inputs; the same seed draws the same ones.
        limit_s: Seconds after which it stops, however many there were.
    """
    rng = random.Random(f"{name} {seed}")
    make_draw, make_take = TARGETS[name]
    draw, take = make_draw(rng), make_take()
    began = time.monotonic()
    tracemalloc.start()
    base, peak_kib, number = 0, 0, 0
    failure = None
    while number < inputs and time.monotonic() - began < limit_s:
        if number % _LIFE == 0:
            take = make_take()
        if number == int(_WARM * inputs):
            base, peak_kib = _held(), _peak_kib()
        data = draw()
        try:
            take(data)
        except Exception as error:  # whatever it is, it is the finding
            what = escaped(f"{type(error).__name__}: {error}")
            failure = f"input {number} of seed {seed}: {what}\n  {data.hex()}"
            break
        number += 1
    take = make_take()
    growth = _held() - base
    tracemalloc.stop()
    peak_kib = _peak_kib() - peak_kib
    if failure is None and base and growth > MAX_GROWTH:
        failure = f"it keeps memory: more than {MAX_GROWTH // 1024} KiB"
    elif failure is None and base and peak_kib > MAX_PEAK_GROWTH_KIB:
        failure = f"it takes memory: more than {MAX_PEAK_GROWTH_KIB} KiB"
    return Verdict(name, number, time.monotonic() - began, growth, peak_kib, failure)


def _held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _peak_kib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


# What is thrown.


def _damaged(rng: random.Random, data: bytes) -> bytes:
    """Good bytes with some of them changed, lost, doubled or out of place."""
    out = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        if not out:
            break
        at, size = rng.randrange(len(out)), rng.randrange(1, 40)
        how = rng.randrange(5)
        if how == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del out[at : at + size]
        elif how == 2:
            out[at:at] = rng.randbytes(size)
        elif how == 3:
            out[at:at] = out[at : at + size]
        else:
            del out[at:]
    return bytes(out[:_MAX_INPUT])


def _draw_messages(rng: random.Random) -> Draw:
    def draw() -> bytes:
        if rng.random() < 0.5:
            return rng.randbytes(rng.randrange(40))
        kind = rng.choice(list(Kind))
        return _damaged(rng, build(kind, rng.randbytes(rng.choice((0, 1, 2, 126, 300)))))

    return draw


def _draw_queries(rng: random.Random) -> Draw:
    values = ("0", "1", "-1", "0.5", "1e999", "nan", "9" * 30, "pcm_s16le", "ogg_opus", "a%00", "")

    def one() -> bytes:
        value: str = rng.choice(values)
        if rng.random() < 0.3:
            value = quote_from_bytes(rng.randbytes(rng.randrange(12)))
        return f"{rng.choice(PARAMETERS)}={value}".encode()

    def draw() -> bytes:
        if rng.random() < 0.2:
            return rng.randbytes(rng.randrange(100))
        return _damaged(rng, b"&".join(one() for _ in range(rng.randrange(6))))

    return draw


def _draw_ogg(rng: random.Random) -> Draw:
    """Pieces of a stream that goes on: good pages, damaged ones, pages of odd packets, noise."""
    encoder = OpusEncoder()
    hum_N = np.sin(np.arange(48_000) * 0.03).astype(np.float32)
    good = PageReader().push(encoder.push(hum_N))
    sounds = [page.parts[0] for page in good[2:]]
    state = {"sequence": 0, "granule": 0, "serial": 1}

    def packet() -> bytes:
        how = rng.random()
        if how < 0.6:
            return rng.choice(sounds)
        if how < 0.8:
            return _damaged(rng, rng.choice(sounds))
        return rng.randbytes(rng.choice((0, 1, 2, 20, 300)))

    def page() -> bytes:
        packets = [packet() for _ in range(rng.choice((1, 1, 1, 2, 4)))]
        flags = 0
        if rng.random() < 0.02:
            flags, packets = 2, [opus_head(rng.choice((8_000, 48_000)))]
            state["sequence"], state["serial"] = 0, rng.randrange(2**32)
        if rng.random() < 0.05:
            flags = rng.randrange(8)
        if rng.random() < 0.05:
            state["sequence"] = (state["sequence"] + rng.choice((1, 3, 1_000, 2**31))) % 2**32
        if rng.random() < 0.05:
            state["granule"] = rng.choice((-1, 0, 2**62, -(2**62), state["granule"] + 50_000))
        body = b"".join(packets)
        table = b"".join(b"\xff" * (len(p) // 255) + bytes([len(p) % 255]) for p in packets)
        if rng.random() < 0.05:
            table = rng.randbytes(rng.randrange(20))
            body = rng.randbytes(sum(table))
        made = build_page(body, table, state["granule"], state["serial"], state["sequence"], flags)
        state["sequence"] = (state["sequence"] + 1) % 2**32
        state["granule"] = min(state["granule"] + sum(map(packet_samples, packets)) * 2, 2**62)
        return made

    def draw() -> bytes:
        how = rng.random()
        if how < 0.1:
            return rng.randbytes(rng.randrange(200))
        if how < 0.12:
            return b"OggS\x00\x00" + b"\xff" * rng.randrange(300)
        made = page()
        return _damaged(rng, made) if how < 0.4 else made

    return draw


def _draw_pcm(rng: random.Random) -> Draw:
    return lambda: rng.randbytes(rng.randrange(200))


# What takes it.


def _take_messages() -> Take:
    def take(data: bytes) -> None:
        for one in (data, data.decode("latin1")):
            try:
                message = parse(one)
            except MessageError:
                continue
            _check(build(message.kind, message.payload) == data, "a message changed")

    return take


def _take_queries() -> Take:
    def take(data: bytes) -> None:
        try:
            request = parse_request(data.decode("latin1"), _FACTS)
        except BadRequest as error:
            _check(str(error).isascii() and len(str(error)) < 200, "an error is not fit for a log")
            return
        max_s, seed = request.max_s, request.seed
        _check(max_s is None or 1 <= max_s <= 600, "max_s is beyond its bounds")
        _check(seed is None or 0 <= seed < 2**63, "seed is beyond its bounds")
        _check(8_000 <= request.rate <= 48_000, "rate is beyond its bounds")

    return take


def _take_ogg() -> Take:
    reader = PageReader()

    def take(data: bytes) -> None:
        for page in reader.push(data):
            _check(sum(map(len, page.parts)) <= MAX_PAGE_BYTES, "a page is too large")
        _check(len(reader) <= MAX_PAGE_BYTES, "too much is kept")

    return take


def _take_opus() -> Take:
    decoder = OpusDecoder()

    def take(data: bytes) -> None:
        samples_N = decoder.push(data)
        _check(samples_N.dtype == np.float32 and samples_N.ndim == 1, "samples of a wrong type")
        _check(bool(np.isfinite(samples_N).all()), "samples that are no numbers")

    return take


def _take_pcm() -> Take:
    decoders = [PcmDecoder(AudioFormat.PCM_S16LE), PcmDecoder(AudioFormat.PCM_F32LE)]

    def take(data: bytes) -> None:
        for decoder in decoders:
            _check(bool(np.isfinite(decoder.push(data)).all()), "samples that are no numbers")

    return take


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


TARGETS: dict[str, tuple[Callable[[random.Random], Draw], Callable[[], Take]]] = {
    "messages": (_draw_messages, _take_messages),
    "queries": (_draw_queries, _take_queries),
    "ogg": (_draw_ogg, _take_ogg),
    "opus": (_draw_ogg, _take_opus),
    "pcm": (_draw_pcm, _take_pcm),
}
"""What draws inputs, and what takes them, by name."""


def main() -> int:
    """Fuzz all targets, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all unless said")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each target at most")
    options = parser.parse_args()
    for name in options.targets or TARGETS:
        verdict = fuzz(name, options.inputs, options.seed, options.seconds)
        print(verdict.line(), flush=True)
        if verdict.failure:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
