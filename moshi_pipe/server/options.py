"""Options of the server: what config files may set under ``server`` and ``edge``."""

from __future__ import annotations

from dataclasses import dataclass, field

DEFAULT_PORT = 8998
"""That of the reference's servers."""


@dataclass
class ServerOptions:
    """Where it listens, who may come in, and what they may do.

    Attributes:
        host: Address to listen on. Any but the loopback needs a token, or ``open``.
        port: TCP port; 0 takes a free one.
        token_env: Environment variable that holds the token which clients must bring; None asks
            for none.
        open: Let strangers in without a token, where the address is not the loopback.
        origins: Origins of web pages that may connect besides the server's own; ``*`` is any.
        tls_cert: PEM file of the certificate chain; with ``tls_key``.
        tls_key: PEM file of its key.
        self_signed: Make a certificate on demand, which browsers warn of.
        max_waiting: Clients that may wait for a slot; 0 refuses them at once.
        max_s: Longest conversation, in seconds of audio.
        idle_s: Seconds without audio after which a conversation ends.
        resume_s: Seconds that a lost client may take to come back; 0 frees its slot at once.
        snapshot_mb: Host memory for the state of clients that are away while others wait, in MB.
        outbox_s: Seconds of answers that wait for a slow client at most.
        stall_s: Seconds after which a client that takes nothing is cut off.
        message_bytes: Largest message from a client.
        messages_per_s: Most messages from a client, averaged over two seconds.
        max_connections: Connections at once, those that wait included.
        connections_per_address: Connections at once from one address.
        recording: Offer to keep conversations: the configured sinks write those whose clients
            consent.
        drain_s: Seconds that conversations have to end when the server stops.
        tunnel: Service that gives a public URL; None gives none.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token_env: str | None = None
    open: bool = False
    origins: list[str] = field(default_factory=list)
    tls_cert: str | None = None
    tls_key: str | None = None
    self_signed: bool = False
    max_waiting: int = 32
    max_s: float = 600.0
    idle_s: float = 60.0
    resume_s: float = 30.0
    snapshot_mb: int = 1024
    outbox_s: float = 2.0
    stall_s: float = 10.0
    message_bytes: int = 65_536
    messages_per_s: int = 200
    max_connections: int = 256
    connections_per_address: int = 64
    recording: bool = True
    drain_s: float = 10.0
    tunnel: str | None = None


@dataclass
class EdgeOptions:
    """The processes that hold the sockets.

    Attributes:
        processes: How many.
    """

    processes: int = 1


@dataclass
class WebsocketOptions:
    """Options of ``source=websocket``.

    Attributes:
        server: Where it listens, who may come in, and what they may do.
        edge: The processes that hold the sockets.
    """

    server: ServerOptions = field(default_factory=ServerOptions)
    edge: EdgeOptions = field(default_factory=EdgeOptions)
