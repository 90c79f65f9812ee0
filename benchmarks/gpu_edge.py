"""What Opus costs the edge a frame of 80 ms, with sphn and with libopus called directly.

``blocked`` is how much of a counting thread's work is lost while another codes: 1 where the
interpreter lock is held all the time, 0 where it is let go (given two cores).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from measure import summary

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLE_RATE = 24_000
FRAME = 1_920
PART = 480  # 20 ms
VOIP = 2048
NUM_FRAMES = 100


def edge_costs() -> dict[str, Any]:
    """Milliseconds a frame, of what is installed here."""
    found: dict[str, Any] = {}
    try:
        found["sphn"] = _cost(*_sphn())
    except ImportError:
        found["sphn"] = "not installed"
    library = ctypes.util.find_library("opus")
    if library is None:
        found["libopus"] = "not installed"
    else:
        found["libopus"] = _cost(*_libopus(ctypes.CDLL(library)))
    return found


def _frames() -> list[Any]:
    time_N = np.arange(NUM_FRAMES * FRAME) / SAMPLE_RATE
    pcm_N = 0.3 * np.sin(2 * np.pi * 220 * time_N) * (1 + np.sin(2 * np.pi * 3 * time_N))
    return list(pcm_N.astype(np.float32).reshape(NUM_FRAMES, FRAME))


def _cost(encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> dict[str, Any]:
    frames = _frames()
    packets: list[Any] = []
    encode_ms = _times(lambda i: packets.append(encode(frames[i])))
    decode_ms = _times(lambda i: decode(packets[i]))
    return {"encode": summary(encode_ms), "decode": summary(decode_ms), "blocked": _blocked(encode)}


def _times(step: Callable[[int], Any]) -> list[float]:
    times = []
    for i in range(NUM_FRAMES):
        start = time.perf_counter()
        step(i)
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _blocked(encode: Callable[[Any], Any]) -> float:
    """Share of a counter's work that is lost while this thread codes."""
    counted = [0]
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    rates = []
    frames = _frames()
    for busy in (False, True):
        before, start = counted[0], time.perf_counter()
        if busy:
            for frame in frames:
                encode(frame)
        else:
            time.sleep(0.2)
        rates.append((counted[0] - before) / (time.perf_counter() - start))
    stop.set()
    thread.join()
    return round(max(0.0, 1 - rates[1] / rates[0]), 2)


def _sphn() -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    import sphn

    writer, reader = sphn.OpusStreamWriter(SAMPLE_RATE), sphn.OpusStreamReader(SAMPLE_RATE)
    return writer.append_pcm, reader.append_bytes


def _libopus(library: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    error = ctypes.c_int()
    library.opus_encoder_create.restype = ctypes.c_void_p
    library.opus_decoder_create.restype = ctypes.c_void_p
    encoder = ctypes.c_void_p(
        library.opus_encoder_create(SAMPLE_RATE, 1, VOIP, ctypes.byref(error))
    )
    decoder = ctypes.c_void_p(library.opus_decoder_create(SAMPLE_RATE, 1, ctypes.byref(error)))
    packet = ctypes.create_string_buffer(4000)
    room_N = np.zeros(PART, np.float32)

    def encode(frame_N: Any) -> list[bytes]:
        made = []
        for start in range(0, FRAME, PART):
            part_N = np.ascontiguousarray(frame_N[start : start + PART])
            size = library.opus_encode_float(
                encoder, part_N.ctypes.data_as(ctypes.c_void_p), PART, packet, len(packet)
            )
            made.append(packet.raw[:size])
        return made

    def decode(packets: list[bytes]) -> None:
        for data in packets:
            library.opus_decode_float(
                decoder, data, len(data), room_N.ctypes.data_as(ctypes.c_void_p), PART, 0
            )

    return encode, decode
