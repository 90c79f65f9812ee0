"""Nodes of plugins that keep sessions without a slot, and that fail at it."""

from __future__ import annotations

from typing import Any

import pytest
from support.nodes import Accumulate

from moshi_pipe.errors import MoshiPipeError, SessionError
from moshi_pipe.foreign import Guarded


class Keeps(Accumulate):
    """Keeps a sum."""

    @property
    def can_snapshot(self) -> bool:
        return True

    def snapshot(self, slot: int) -> Any:
        return self.state[slot].clone()

    def restore(self, slot: int, snapshot: Any, settings: Any) -> None:
        self.state[slot] = snapshot


class Fails(Keeps):
    """Fails at all of it."""

    def readers(self) -> Any:
        raise ValueError("no tokenizer")

    def files(self) -> Any:
        raise ValueError("no file")

    @property
    def can_snapshot(self) -> bool:
        raise ValueError("no idea")

    def snapshot(self, slot: int) -> Any:
        raise ValueError("no room")

    def restore(self, slot: int, snapshot: Any, settings: Any) -> None:
        raise ValueError("no way")


def test_a_guarded_node_keeps_sessions_if_the_node_does() -> None:
    node = Keeps()
    guarded = Guarded(node, "node 'sum'", "someone")
    guarded.open(2)
    node.state[0] = 5.0
    assert guarded.can_snapshot
    guarded.restore(1, guarded.snapshot(0), None)
    assert node.state[1].eq(5).all()

    cannot = Guarded(Accumulate(), "node 'sum'", "someone")
    assert not cannot.can_snapshot
    with pytest.raises(SessionError, match=r"^the state of a session cannot be kept\n"):
        cannot.snapshot(0)


def test_its_owner_is_named_when_it_fails() -> None:
    guarded = Guarded(Fails(), "node 'sum'", "someone")
    for ask in (guarded.readers, guarded.files):
        with pytest.raises(MoshiPipeError, match="someone"):
            ask()
    with pytest.raises(MoshiPipeError, match="someone") as caught:
        guarded.snapshot(0)
    assert "no room" in str(caught.value)
    with pytest.raises(MoshiPipeError, match="no way"):
        guarded.restore(0, None, None)
    with pytest.raises(MoshiPipeError, match="no idea"):
        assert guarded.can_snapshot
