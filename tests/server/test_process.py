"""Edge processes: what they inherit, how they end, and that none is left."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import closing

import pytest

from moshi_pipe.server.lane import Down
from moshi_pipe.server.options import ServerOptions
from moshi_pipe.server.process import start_edge

N = 4

EDGE = textwrap.dedent(
    """
    import asyncio, json, socket, sys
    from moshi_pipe.server.lane import Down, Lanes, map_memory
    from moshi_pipe.server.link import open_link

    async def main(options_json, listen_fds, link_fd, memory_fd):
        start = json.loads(options_json)
        lanes = Lanes(map_memory(int(memory_fd)), start["lanes"], start["frame_samples"])
        ports = [socket.socket(fileno=int(fd)).getsockname()[1] for fd in listen_fds.split(",")]
        link = await open_link(socket.socket(fileno=int(link_fd)))
        link.send({"op": "hello", "edge": start["edge"], "ports": ports, "name": start["server"]})
        down = lanes.down_reader(1)
        async for message in link.messages():
            if isinstance(message, dict) and message["op"] == "die":
                raise SystemExit("this is why")
            if not isinstance(message, dict):
                answer = down.take(message.rows)
                link.send({"op": "heard", "frame": answer.frame, "text": answer.text})

    asyncio.run(main(*sys.argv[1:]))
    """
)


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_a_process_has_the_sockets_the_lanes_and_the_options() -> None:
    async def talk() -> None:
        with closing(listening()) as one:
            edge = await start_edge(
                2, ServerOptions(idle_s=7), [one], num_lanes=2, frame_samples=N, program=EDGE
            )
            messages = edge.link.messages()
            hello = await anext(messages)
            assert isinstance(hello, dict)
            assert hello["edge"] == 2
            assert hello["ports"] == [one.getsockname()[1]]
            assert hello["name"]["idle_s"] == 7
            edge.link.put(1, edge.lanes.down_writer(1).put(Down(5, 0, None, "hi")))
            assert await anext(messages) == {"op": "heard", "frame": 5, "text": "hi"}
            pid = edge.pid
            assert pid is not None
            assert await edge.end(20) == ""
            assert not exists(pid)

    asyncio.run(asyncio.wait_for(talk(), 60))


def test_what_a_process_said_last_is_known() -> None:
    async def talk() -> None:
        with closing(listening()) as one:
            edge = await start_edge(
                0, ServerOptions(), [one], num_lanes=2, frame_samples=N, program=EDGE
            )
            edge.link.send({"op": "die"})
            said = [message async for message in edge.link.messages()]
            assert len(said) == 1
            assert await edge.end(20) == "this is why"

    asyncio.run(asyncio.wait_for(talk(), 60))


def test_a_process_that_does_not_end_is_killed() -> None:
    async def talk() -> None:
        with closing(listening()) as one:
            edge = await start_edge(
                0,
                ServerOptions(),
                [one],
                num_lanes=2,
                frame_samples=N,
                program="import signal; signal.pause()",
            )
            await edge.end(0.1)
            assert edge.pid is not None
            assert not exists(edge.pid)

    asyncio.run(asyncio.wait_for(talk(), 60))


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
def test_a_process_ends_with_that_of_the_engine() -> None:
    program = textwrap.dedent(
        f"""
        import asyncio, socket
        from moshi_pipe.server.options import ServerOptions
        from moshi_pipe.server.process import start_edge
        async def main():
            one = socket.create_server(("127.0.0.1", 0))
            edge = await start_edge(
                0, ServerOptions(), [one], num_lanes=2, frame_samples=4, program={EDGE!r}
            )
            await anext(edge.link.messages())
            print(edge.pid, flush=True)
            await asyncio.Event().wait()
        asyncio.run(main())
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as engine:
        assert engine.stdout is not None
        pid = int(engine.stdout.readline())
        watched = os.pidfd_open(pid)  # readable when it has ended
        engine.send_signal(signal.SIGKILL)
        try:
            ended, _, _ = select.select([watched], [], [], 20)
        finally:
            os.close(watched)
    assert ended


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
