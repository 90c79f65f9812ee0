"""Cases of the corpus: files of YAML that say what a client does, and what a server must do.

A file is a list of cases. A case has a ``name``, says whose servers it is for (``servers: all`` are
all of the protocol, ``servers: ours`` those that do all of ``docs/protocol.md``), and lists steps::

    connect: audio=pcm_s16le      open a websocket with this query; {token} is what was remembered
    begin: {protocol: 1}          the handshake comes, then metadata that says this; before it only
                                  places in line
    send: 01 (00)*3840            send a message; with times and every_ms several, with cut its
                                  payload in messages of so many bytes
    send_text: hello              send a message that is text
    next: 06 61 62                the next message is this; with json, its payload says this
    eventually: 05 'bad' ...      a message like this comes, others may come before
    audio: 2                      so many frames of audio have come on this connection, or come now
    no_more_than: 2               no more frames have come than these
    remember: true                keep the token that brings the client back
    drop: true                    lose the connection without a close
    close: 1000                   close it
    closed: 1008 taken_over       the server closes with this code, and a reason that begins so
    http: /healthz 200 'ok' ...   a GET gets this status (4xx is any of them) and this body

``client: second`` makes a step one of another connection. How bytes are written is in
:mod:`~moshi_pipe.server.conformance.notation`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from moshi_pipe.server.conformance.notation import Pattern, parse_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

CASES: Final = Path(__file__).parent / "cases"
"""Where the corpus is."""

_STREAMS: Final = "streams.yaml"
_VERBS: Final[dict[str, set[str]]] = {
    "connect": set(),
    "begin": set(),
    "send": {"times", "every_ms", "cut"},
    "send_text": set(),
    "next": {"json"},
    "eventually": {"json"},
    "audio": set(),
    "no_more_than": set(),
    "remember": set(),
    "drop": set(),
    "close": set(),
    "closed": set(),
    "http": {"json"},
}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a client does, or that a server must do.

    Attributes:
        verb: What.
        value: With what.
        options: What else it says.
        client: Of which connection.
    """

    verb: str
    value: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    client: str = "first"


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation.

    Attributes:
        name: A sentence.
        only_ours: Whether other servers of the protocol may do otherwise.
        steps: In order.
    """

    name: str
    only_ours: bool
    steps: tuple[Step, ...]


def load_streams(folder: Path = CASES) -> dict[str, list[bytes]]:
    """Pages of the streams that cases send, by name."""
    written = yaml.safe_load((folder / _STREAMS).read_text(encoding="utf-8"))
    return {name: [bytes.fromhex(page) for page in pages] for name, pages in written.items()}


def load_cases(folder: Path = CASES) -> list[Case]:
    """The corpus, in the order of its files.

    Raises:
        ValueError: A case is not written as it should be; the message says which.
    """
    streams = load_streams(folder)
    cases = []
    for path in sorted(folder.glob("*.yaml")):
        if path.name != _STREAMS:
            for written in yaml.safe_load(path.read_text(encoding="utf-8")):
                try:
                    cases.append(_case(written, streams))
                except (KeyError, TypeError, ValueError) as error:
                    name = written.get("name", "a case without a name")
                    raise ValueError(f"{path.name}: {name}: {error}") from error
    return cases


def _case(written: Mapping[str, Any], streams: Mapping[str, list[bytes]]) -> Case:
    if set(written) != {"name", "servers", "steps"}:
        raise ValueError(f"a case has a name, servers and steps, not {', '.join(written)}")
    if written["servers"] not in ("all", "ours"):
        raise ValueError(f"servers are all or ours, not {written['servers']!r}")
    steps = tuple(_step(step, streams) for step in written["steps"])
    return Case(str(written["name"]), written["servers"] == "ours", steps)


def _step(written: Mapping[str, Any], streams: Mapping[str, list[bytes]]) -> Step:
    verb, value = next(iter(written.items()))
    if verb not in _VERBS:
        raise ValueError(f"there is no step {verb!r}")
    options = {key: one for key, one in written.items() if key not in (verb, "client")}
    if not set(options) <= _VERBS[verb]:
        raise ValueError(f"{verb} does not know {', '.join(map(str, set(options) - _VERBS[verb]))}")
    if verb == "send":
        value = parse_bytes(str(value), streams)
    elif verb in ("next", "eventually"):
        value = Pattern.parse(str(value), streams)
    elif verb == "http":
        path, status, body = [*str(value).split(" ", 2), ""][:3]
        value = (path, status, Pattern.parse(body or "...", streams))
    elif verb == "closed":
        code, _, reason = str(value).partition(" ")
        value = (int(code), reason)
    return Step(verb, value, options, str(written.get("client", "first")))
