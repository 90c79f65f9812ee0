"""What a config may set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TelephoneOptions:
    """Where calls come in, and how long they may last.

    Attributes:
        host: Address to listen on; another than this machine's own needs a token.
        port: To listen on; 0 takes a free one.
        path: The only path that is answered.
        max_calls: Calls at once; ``engine.slots`` should be as many. Further ones are refused.
        token_env: Name of the environment variable that holds the token which a call must bring,
            as the custom parameter ``token`` or in a header ``Authorization: Bearer``; empty for
            none.
        start_s: Seconds in which a connection must say what it is.
        idle_s: Seconds without sound from the caller after which the call is ended.
        duration_s: Seconds that a call may last; null for no limit.
        max_behind_ms: What the caller's side may hold unplayed, in ms, before it is told to
            forget it.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    path: str = "/media"
    max_calls: int = 1
    token_env: str = ""
    start_s: float = 5.0
    idle_s: float = 30.0
    duration_s: float | None = None
    max_behind_ms: float = 1000.0
