"""Which replicas there are, and which of them holds a conversation: one small actor knows."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

_MOST_TOKENS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a replica is.

    Attributes:
        address: Of its server.
        host: Name of its machine.
        pid: Its process.
    """

    address: str
    host: str
    pid: int


class Directory:
    """Made an actor, once per cluster. What it forgets costs a client a new conversation."""

    def __init__(self) -> None:
        self._holders: OrderedDict[str, str] = OrderedDict()
        self._replicas: dict[str, Whereabouts] = {}
        self._secret = secrets.token_hex(16)
        self._ending = False

    def begin(self) -> str:
        """Replicas are wanted; returns the secret that their servers ask for."""
        self._ending = False
        return self._secret

    def end(self) -> None:
        """All replicas shall let their conversations end."""
        self._ending = True

    def register(self, replica: Whereabouts) -> bool:
        """A replica is there; returns whether it shall end."""
        self._replicas[replica.address] = replica
        return self._ending

    def replicas(self) -> list[Whereabouts]:
        """Those that are there, as far as is known."""
        return list(self._replicas.values())

    def holds(self, token: str, address: str) -> None:
        """The conversation with this token is at this address."""
        self._holders[token] = address
        self._holders.move_to_end(token)
        while len(self._holders) > _MOST_TOKENS:
            self._holders.popitem(last=False)

    def holder(self, token: str) -> str | None:
        """Where the conversation with a token is, or was."""
        return self._holders.get(token)

    def forget(self, address: str) -> None:
        """A replica is gone, and with it all that it held."""
        self._replicas.pop(address, None)
        for token in [token for token, at in self._holders.items() if at == address]:
            del self._holders[token]
