"""``python -m moshi_pipe``: the same as the command ``moshi-pipe``."""

from __future__ import annotations

import sys

from moshi_pipe.cli import main

if __name__ == "__main__":
    sys.exit(main())
