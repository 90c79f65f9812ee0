"""Play the corpus against a server: ``python -m moshi_pipe.server.conformance URL``."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from typing import TYPE_CHECKING

from moshi_pipe.server.conformance.case import load_cases
from moshi_pipe.server.conformance.player import Target, play

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Play all cases, or those that are asked for; returns 1 if the server failed one."""
    parser = argparse.ArgumentParser(
        prog="python -m moshi_pipe.server.conformance",
        description="Play a corpus of conversations against a server; see docs/protocol.md.",
    )
    parser.add_argument("url", help="ws://host:port, or wss:// with TLS")
    parser.add_argument(
        "--reference", action="store_true", help="only what all servers of the protocol do"
    )
    parser.add_argument("--only", metavar="WORDS", help="cases whose name holds these words")
    parser.add_argument(
        "--token-env",
        metavar="NAME",
        default="MOSHI_PIPE_TOKEN",
        help="environment variable that holds the server's token (%(default)s)",
    )
    parser.add_argument(
        "--within", type=float, default=10.0, metavar="S", help="seconds to wait (%(default)g)"
    )
    parser.add_argument("--insecure", action="store_true", help="take any certificate")
    options = parser.parse_args(arguments)
    target = Target(
        options.url if "://" in options.url else f"ws://{options.url}",
        token=os.environ.get(options.token_env) or None,
        reference=options.reference,
        within_s=options.within,
        verify=not options.insecure,
    )
    return asyncio.run(_play_all(target, options.only or ""))


async def _play_all(target: Target, words: str) -> int:
    failed = played = 0
    for case in load_cases():
        if (case.only_ours and target.reference) or words not in case.name:
            continue
        began = time.monotonic()
        wrong = await play(case, target)
        seconds = time.monotonic() - began
        played += 1
        failed += wrong is not None
        verdict = "ok  " if wrong is None else "FAIL"
        sys.stdout.write(f"{verdict} {seconds:5.1f} s  {case.name}\n")
        if wrong is not None:
            sys.stdout.write(f"              {wrong}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{played - failed} of {played} cases are right\n")
    return 1 if failed or not played else 0


if __name__ == "__main__":
    sys.exit(main())
