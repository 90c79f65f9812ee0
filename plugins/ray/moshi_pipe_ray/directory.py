"""Which replica holds which conversation, and who has room: one small actor knows."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Final

_MOST_TOKENS: Final = 100_000


class Directory:
    """Made an actor, once per cluster. What it forgets costs a client a new conversation."""

    def __init__(self) -> None:
        self._holders: OrderedDict[str, str] = OrderedDict()
        self._free: dict[str, int] = {}
        self._secret = secrets.token_hex(16)
        self._ending = False

    def begin(self) -> str:
        """Replicas are wanted; returns the secret that their servers ask each other for."""
        self._ending = False
        return self._secret

    def end(self) -> None:
        """All replicas shall let their conversations end."""
        self._ending = True

    def holds(self, token: str, address: str) -> None:
        """The conversation with this token is at this address."""
        self._holders[token] = address
        self._holders.move_to_end(token)
        while len(self._holders) > _MOST_TOKENS:
            self._holders.popitem(last=False)

    def holder(self, token: str) -> str | None:
        """Where the conversation with a token is, or was."""
        return self._holders.get(token)

    def report(self, address: str, free: int) -> bool:
        """A replica says how many conversations more it could begin; returns whether to end."""
        self._free[address] = free
        return self._ending

    def forget(self, address: str) -> None:
        """A replica is gone, and with it all that it held."""
        self._free.pop(address, None)
        for token in [token for token, at in self._holders.items() if at == address]:
            del self._holders[token]

    def roomiest(self, but: str) -> str | None:
        """Who has most room, besides one; None where all are full. Counts on it being taken."""
        others = {address: free for address, free in self._free.items() if address != but}
        address = max(others, key=lambda one: others[one], default=None)
        if address is None or others[address] <= 0:
            return None
        self._free[address] -= 1
        return address
