import asyncio
import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import websockets
from support.edge import Edge, N, edge, noise, run
from websockets.asyncio.client import ClientConnection, connect

from moshi_pipe.server.lane import Down
from moshi_pipe.server.options import ServerOptions


def pcm(frames_TN: np.ndarray[Any, Any]) -> bytes:
    return b"\x01" + frames_TN.astype("<f4").tobytes()


async def begin(client: ClientConnection) -> dict[str, Any]:
    """Take the handshake and the session's metadata."""
    assert await client.recv() == b"\x00"
    return metadata(await client.recv())


def metadata(message: str | bytes) -> dict[str, Any]:
    assert isinstance(message, bytes)
    assert message[0] == 4, message
    values: dict[str, Any] = json.loads(message[1:])
    return values


async def rest(client: ClientConnection) -> tuple[list[bytes], int, str]:
    """All that comes until the close, and the close."""
    messages: list[bytes] = []
    with suppress(websockets.ConnectionClosed):
        async for message in client:
            assert isinstance(message, bytes)
            messages.append(message)
    code, reason = client.close_code, client.close_reason
    return messages, code or 0, reason or ""


def of_kind(messages: list[bytes], kind: int) -> list[bytes]:
    return [message[1:] for message in messages if message[0] == kind]


def floats(messages: list[bytes]) -> np.ndarray[Any, Any]:
    return np.frombuffer(b"".join(of_kind(messages, 1)), "<f4").reshape(-1, N)


def raw(one: Edge, query: str = "") -> Any:
    return connect(f"{one.url}?audio=pcm_f32le{query}")


@pytest.mark.parametrize("piece", [7, 4_000, 65_535])
def test_frames_arrive_whole_however_they_are_sent_and_come_back(piece: int) -> None:
    sent = noise(6)

    async def talk() -> None:
        async with edge(ServerOptions(messages_per_s=20_000)) as one, raw(one) as client:
            await begin(client)
            data = sent.tobytes()
            for start in range(0, len(data), piece):
                await client.send(b"\x01" + data[start : start + piece])
            await client.send(b"\x03\x01")
            messages, code, reason = await rest(client)
            heard = np.stack((await one.engine.client()).heard)
            assert np.array_equal(heard, sent)
            assert np.array_equal(floats(messages), -sent)
            assert b"".join(of_kind(messages, 2)).decode() == "▁0▁1▁2▁3▁4▁5"
            assert (code, reason) == (1000, "done")

    run(talk)


def test_the_end_of_a_turn_fills_the_last_frame_up_with_silence() -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)
            await client.send(pcm(noise(1)[:, :100]))
            await client.send(b"\x03\x01")
            await rest(client)
            (heard,) = (await one.engine.client()).heard
            assert np.array_equal(heard[:100], noise(1)[0, :100])
            assert not heard[100:].any()

    run(talk)


def test_text_follows_the_audio_of_its_frame() -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)
            await client.send(pcm(noise(2)))
            kinds = [(await client.recv())[0] for _ in range(4)]
            assert kinds == [1, 2, 1, 2]

    run(talk)


def test_opus_comes_in_and_goes_out() -> None:
    sphn = pytest.importorskip("sphn")

    async def talk() -> None:
        async with edge() as one, connect(one.url) as client:
            await begin(client)
            writer, reader = sphn.OpusStreamWriter(24_000), sphn.OpusStreamReader(24_000)
            for frame_N in noise(10) * 0.1:
                await client.send(b"\x01" + bytes(writer.append_pcm(frame_N)))
            await client.send(b"\x03\x01")
            messages, code, _ = await rest(client)
            pages = of_kind(messages, 1)
            heard_N = np.concatenate([reader.append_bytes(page) for page in pages])
            assert heard_N.size >= 9 * N
            assert 0.01 < np.abs(heard_N[N:]).mean() < 0.1
            assert code == 1000

    run(talk)


def test_other_rates_are_resampled() -> None:
    async def talk() -> None:
        async with edge() as one, raw(one, "&rate=16000") as client:
            await begin(client)
            time_N = np.arange(16_000) / 16_000
            tone_N = (0.5 * np.sin(2 * np.pi * 440 * time_N)).astype("<f4")
            await client.send(b"\x01" + tone_N.tobytes())
            await client.send(b"\x03\x01")
            await rest(client)
            heard_N = np.concatenate((await one.engine.client()).heard)
            wanted_N = 0.5 * np.sin(2 * np.pi * 440 * np.arange(23_000) / 24_000)
            assert np.abs(heard_N[200:23_000] - wanted_N[200:]).max() < 1e-3

    run(talk)


def test_samples_that_are_no_numbers_or_too_large_become_harmless() -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)
            frame_N = np.zeros(N, "<f4")
            frame_N[:4] = [np.nan, np.inf, -np.inf, 3e38]
            await client.send(b"\x01" + frame_N.tobytes())
            await client.recv()
            (heard,) = (await one.engine.client()).heard
            assert heard[:4].tolist() == [0, 1, -1, 1]

    run(talk)


def test_what_waits_is_told_its_position_before_the_handshake() -> None:
    async def talk() -> None:
        async with edge() as one:
            one.engine.seats = False
            async with raw(one) as client:
                guest = await one.engine.client()
                position = {"op": "queue", "conn": guest.conn, "position": 2, "waiting": 5}
                one.engine.link.send(position)
                told = metadata(await client.recv())
                assert told == {"type": "queue", "position": 2, "waiting": 5}
                await client.send(pcm(noise(1)))  # clients of the reference do not wait
                one.engine.seat(guest)
                await begin(client)
                await client.send(pcm(noise(1, seed=1)))
                await client.recv()
                assert np.array_equal(guest.heard, noise(1, seed=1))
            await one.engine.until(lambda: one.engine.counted("early_audio") == 1)

    run(talk)


def test_a_refusal_is_an_error_and_a_close() -> None:
    async def talk() -> None:
        async with edge() as one:
            one.engine.seats = False
            async with raw(one) as client:
                guest = await one.engine.client()
                error = "at_capacity: all 4 slots are in use; try again later"
                one.engine.link.send(
                    {
                        "op": "refuse",
                        "conn": guest.conn,
                        "close": 1013,
                        "reason": "at_capacity",
                        "error": error,
                    }
                )
                assert await rest(client) == ([b"\x05" + error.encode()], 1013, "at_capacity")
            await one.engine.until(lambda: guest.gone is not None)
            assert guest.gone is not None
            assert not guest.gone["lost"]

    run(talk)


def test_an_engine_that_does_not_answer_is_told_of_within_seconds() -> None:
    async def talk() -> None:
        async with edge() as one:
            one.engine.seats = False
            async with raw(one) as client:
                messages, code, reason = await rest(client)
                assert messages[0].startswith(b"\x05at_capacity: ")
                assert (code, reason) == (1013, "at_capacity")

    run(talk)


def test_pings_are_answered_and_metadata_is_forwarded() -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)
            await client.send(b"\x06abc")
            assert await client.recv() == b"\x06abc"
            guest = await one.engine.client()
            ending = {"type": "ending", "reason": "idle", "in_s": 10.0}
            one.engine.link.send({"op": "say", "conn": guest.conn, "metadata": ending})
            assert metadata(await client.recv()) == ending

    run(talk)


def test_a_pause_sends_nothing_on_until_the_start() -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)
            await client.send(b"\x03\x02")
            await client.send(pcm(noise(1)))
            await client.send(b"\x03\x00")
            await client.send(pcm(noise(1, seed=1)))
            await client.recv()
            guest = await one.engine.client()
            assert np.array_equal(guest.heard, noise(1, seed=1))

    run(talk)


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (b"", "empty"),
        ("hello", "text"),
        (b"\x2a", "unknown_kind"),
        (b"\x04{}", "unexpected_kind"),
        (b"\x03", "control"),
        (b"\x03\x09", "control"),
        (b"\x06" + bytes(126), "ping"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_message_that_is_none_is_answered_counted_and_forgiven(
    message: bytes | str, name: str
) -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)
            await client.send(message)
            answer = await client.recv()
            assert isinstance(answer, bytes)
            assert answer.startswith(b"\x05bad_message: ")
            await client.send(pcm(noise(1)))
            assert (await client.recv())[0] == 1
            await one.engine.until(lambda: one.engine.counted(f"bad_messages.{name}") == 1)

    run(talk)


def test_too_many_bad_messages_are_too_many() -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)
            for _ in range(11):
                await client.send(b"\x2a")
            messages, code, reason = await rest(client)
            assert len(messages) <= 4  # answers are few, and the last says why
            assert messages[-1].startswith(b"\x05too_many_bad_messages: ")
            assert (code, reason) == (1008, "too_many_bad_messages")
            guest = await one.engine.client()
            await one.engine.until(lambda: guest.gone is not None)
            assert guest.gone is not None
            assert not guest.gone["lost"]

    run(talk)


def test_a_flood_of_messages_is_cut_off() -> None:
    async def talk() -> None:
        async with edge(ServerOptions(messages_per_s=10)) as one, raw(one) as client:
            await begin(client)
            for _ in range(21):
                await client.send(b"\x01")
            messages, code, reason = await rest(client)
            assert messages[-1].startswith(b"\x05too_fast: ")
            assert (code, reason) == (1008, "too_fast")

    run(talk)


def test_a_flood_of_audio_is_cut_off() -> None:
    async def talk() -> None:
        options = ServerOptions(messages_per_s=10_000)
        async with edge(options) as one, connect(f"{one.url}?audio=pcm_s16le") as client:
            await begin(client)

            async def flood() -> None:  # 80 s of audio at once
                with suppress(websockets.ConnectionClosed):
                    for _ in range(1_000):
                        await client.send(b"\x01" + bytes(2 * N))

            flooding = asyncio.ensure_future(flood())
            _, code, reason = await rest(client)
            await flooding
            assert (code, reason) == (1008, "too_fast")

    run(talk)


def test_a_flood_of_pings_below_the_messages_is_cut_off() -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)
            for _ in range(5_000):  # more than a slow machine's seconds allow
                client.protocol.send_ping(b"")
                client.transport.write(b"".join(client.protocol.data_to_send()))
            await client.wait_closed()  # of the close itself a flood may see no more
            guest = await one.engine.client()
            await one.engine.until(lambda: guest.gone is not None)
            assert guest.gone is not None
            assert guest.gone["why"] == "closed with 1008"

    run(talk)


def test_a_message_in_thousands_of_empty_pieces_is_cut_off() -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)

            async def pieces() -> Any:
                yield b"\x01"
                for _ in range(2_000):
                    yield b""

            with suppress(websockets.ConnectionClosed):
                await client.send(pieces())
            await client.wait_closed()
            assert client.close_code == 1008

    run(talk)


def test_a_message_that_is_too_large_is_refused_by_the_websocket() -> None:
    async def talk() -> None:
        options = ServerOptions(message_bytes=1_000)
        async with edge(options) as one, raw(one) as client:
            await begin(client)
            await client.send(bytes(1_001))
            assert (await rest(client))[1] == 1009
            guest = await one.engine.client()
            await one.engine.until(lambda: guest.gone is not None)
            assert guest.gone == {
                "op": "gone",
                "conn": guest.conn,
                "lost": False,
                "why": "closed with 1009",
            }

    run(talk)


@pytest.mark.parametrize(("code", "lost"), [(1000, False), (1001, False), (4000, True)])
def test_a_client_that_closes_is_lost_only_where_that_was_not_meant(code: int, lost: bool) -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)
            guest = await one.engine.client()
            await client.close(code)
            await one.engine.until(lambda: guest.gone is not None)
            assert guest.gone is not None
            assert guest.gone["lost"] is lost

    run(talk)


def test_a_client_that_vanishes_is_lost() -> None:
    async def talk() -> None:
        async with edge() as one:
            client = await raw(one)
            await begin(client)
            guest = await one.engine.client()
            client.transport.abort()
            await one.engine.until(lambda: guest.gone is not None)
            assert guest.gone is not None
            assert guest.gone["lost"]
            await client.wait_closed()

    run(talk)


def test_a_client_that_vanishes_after_its_turn_is_not_lost() -> None:
    async def talk() -> None:
        async with edge() as one:
            one.engine.takes = False
            client = await raw(one)
            await begin(client)
            guest = await one.engine.client()
            await client.send(pcm(noise(1)))
            await client.send(b"\x03\x01")
            await one.engine.until(lambda: bool(guest.told))
            client.transport.abort()
            await one.engine.until(lambda: guest.gone is not None)
            assert guest.gone is not None
            assert not guest.gone["lost"]
            await client.wait_closed()

    run(talk)


def test_an_error_at_the_end_follows_the_last_answer() -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)
            guest = await one.engine.client()
            one.engine.answer(guest, Down(0, 0, noise(1)[0]))
            one.engine.end(guest, 1012, "engine failed", "engine_failed: out of memory")
            messages, code, reason = await rest(client)
            assert [message[0] for message in messages] == [1, 5]
            assert (code, reason) == (1012, "engine failed")

    run(talk)


def test_statistics_come_about_once_a_second() -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)
            guest = await one.engine.client()
            stats: dict[str, Any] = {}
            for number in range(200):
                one.engine.answer(guest, Down(number, 1, None, "", dropped=3, late=2))
                await one.engine.until(lambda: one.engine.room(guest) > 0)
                try:
                    stats = metadata(await asyncio.wait_for(client.recv(), 0.05))
                except asyncio.TimeoutError:
                    continue
                break
            assert stats["type"] == "stats"
            assert stats["dropped_frames"] == 3
            assert stats["late_frames"] == 2
            assert stats["skipped_frames"] == 0
            assert stats["latency_ms"] > 0

    run(talk)


def test_the_stop_closes_clients_as_going_away() -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)
            one.engine.link.send({"op": "stop"})
            messages, code, reason = await rest(client)
            assert (code, reason) == (1001, "shutdown")
            assert of_kind(messages, 5) == [b"shutdown: the server stops"]
            assert await one.serving == 0

    run(talk)


def test_an_engine_that_is_gone_closes_clients_for_a_restart() -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)
            one.engine.link.close()
            messages, code, reason = await rest(client)
            assert (code, reason) == (1012, "engine failed")
            assert of_kind(messages, 5) == [b"engine_failed: its process is gone"]
            assert await one.serving == 0

    run(talk)


def test_an_engine_that_makes_no_sense_ends_the_process() -> None:
    async def talk() -> None:
        async with edge() as one, raw(one) as client:
            await begin(client)
            guest = await one.engine.client()
            assert guest.lane is not None
            one.engine.link.put(guest.lane, 1_000)
            assert (await rest(client))[1] == 1012
            assert await one.serving == 1

    run(talk)


def test_lossless_input_is_neither_dropped_nor_cut_off() -> None:
    sent = noise(100)

    async def talk() -> None:
        options = ServerOptions(messages_per_s=40)
        async with edge(options, lossless=True) as one, raw(one) as client:
            one.engine.takes = False
            await begin(client)
            guest = await one.engine.client()

            async def send() -> None:
                for start in range(0, 100, 4):
                    await client.send(pcm(sent[start : start + 4]))
                await client.send(b"\x03\x01")

            sending = asyncio.ensure_future(send())
            await one.engine.until(lambda: guest.put == 26)  # a full lane; then reading stops
            one.engine.take(guest)
            messages, code, _ = await rest(client)
            await sending
            assert np.array_equal(guest.heard, sent)
            assert np.array_equal(floats(messages), -sent)
            assert code == 1000

    run(talk)
