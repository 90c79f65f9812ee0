"""Conformance checks: whether a source, sink, node, codec or language model keeps its promises.

Each check takes a factory, runs what it makes the way the engine and the edge would, and raises
:class:`ConformanceError` with the promise that was broken. They need no test framework::

    from moshi_pipe.testing import check_source

    check_source(lambda: ToneSource(ToneOptions()))

A check that passes proves nothing about sound or speed; it says that the part does not harm others.
"""

from __future__ import annotations

from moshi_pipe.testing.conformance import ConformanceError
from moshi_pipe.testing.edge import check_sink, check_source
from moshi_pipe.testing.lm import check_lm
from moshi_pipe.testing.node import check_node
from moshi_pipe.testing.sound import check_codec

__all__ = [
    "ConformanceError",
    "check_codec",
    "check_lm",
    "check_node",
    "check_sink",
    "check_source",
]
