"""Edge processes, as the engine's process sees them: started, listened to, ended."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from moshi_pipe.server.guard import escaped
from moshi_pipe.server.lane import Lanes, make_memory, map_memory
from moshi_pipe.server.link import Link, open_link

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moshi_pipe.server.options import ServerOptions

_PROGRAM: Final = (
    "import sys\nfrom moshi_pipe.server.edge_process import main\nsys.exit(main(*sys.argv[1:]))"
)
_ERROR_BYTES: Final = 4_000


class EdgeProcess:
    """A process that holds sockets, its lanes, and the link to it.

    What it shares has no name, so nothing is left behind however this process ends; and it ends
    with this process, because its link closes then.

    Args:
        number: Which of the edge processes.
        link: To it.
        lanes: That it shares.
        process: The process; None if the other side of the link is in this one, for tests.

    Attributes:
        number: Which of the edge processes.
        link: To it.
        lanes: That it shares.
    """

    def __init__(
        self,
        number: int,
        link: Link,
        lanes: Lanes,
        process: subprocess.Popen[bytes] | None = None,
        errors: int | None = None,
    ) -> None:
        self.number = number
        self.link = link
        self.lanes = lanes
        self._process = process
        self._errors = errors

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return None if self._process is None else self._process.pid

    async def end(self, within_s: float) -> str:
        """Close the link, and wait for the end of the process; kill it when it takes too long.

        Returns:
            What it wrote to its standard error last, such as a traceback; usually nothing.
        """
        self.link.close()
        process = self._process
        if process is not None:
            try:
                await asyncio.to_thread(process.wait, within_s)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)
        return self._last_words()

    def _last_words(self) -> str:
        if self._errors is None:
            return ""
        size = os.fstat(self._errors).st_size
        text = os.pread(self._errors, _ERROR_BYTES, max(0, size - _ERROR_BYTES))
        os.close(self._errors)
        self._errors = None
        lines = text.decode(errors="replace").strip().splitlines()
        return "\n".join(escaped(line, _ERROR_BYTES) for line in lines)


async def start_edge(
    number: int,
    options: ServerOptions,
    listening: Sequence[socket.socket],
    *,
    num_lanes: int,
    frame_samples: int,
    program: str = _PROGRAM,
) -> EdgeProcess:
    """Start an edge process.

    Args:
        number: Which of the edge processes.
        options: Of the server.
        listening: Bound sockets, that every edge process accepts from.
        num_lanes: Conversations that it can carry at once.
        frame_samples: Samples of a frame.
        program: Python that it runs; see :mod:`~moshi_pipe.server.link` for its arguments.

    Raises:
        OSError: The system does not allow another process.
    """
    memory = make_memory(Lanes.size(num_lanes, frame_samples))
    mine, its = socket.socketpair()
    errors = _unnamed_file()
    start = {
        "edge": number,
        "server": asdict(options),
        "lanes": num_lanes,
        "frame_samples": frame_samples,
    }
    descriptors = [one.fileno() for one in listening]
    try:
        lanes = Lanes(map_memory(memory), num_lanes, frame_samples)
        process = await asyncio.to_thread(
            subprocess.Popen,
            [
                sys.executable,
                "-c",
                program,
                json.dumps(start),
                ",".join(map(str, descriptors)),
                str(its.fileno()),
                str(memory),
            ],
            pass_fds=[*descriptors, its.fileno(), memory],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
        )
    except BaseException:
        mine.close()
        os.close(errors)
        raise
    finally:
        its.close()
        os.close(memory)
    return EdgeProcess(number, await open_link(mine), lanes, process, errors)


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
