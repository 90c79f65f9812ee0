"""What a client asks for in the query of its websocket: every value checked and bounded.

Names are those of the reference's Rust server where it has them. Source: kyutai-labs/moshi@e6a55d2
rust/moshi-backend/src/standalone.rs and stream_both.rs, ``SessionConfigReq``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from moshi_pipe.server.guard import escaped
from moshi_pipe.server.messages import AudioFormat

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_RATE: Final = 8_000
"""Hz of PCM that a client may send at least."""

MAX_RATE: Final = 48_000
"""Hz of PCM that a client may send at most."""

MAX_SEED: Final = 2**63 - 1

MAX_FIELDS: Final = 64
"""Parameters of a query at most."""

SETTINGS: Final = {
    "audio_temperature": "temperature",
    "text_temperature": "text_temperature",
    "audio_topk": "top_k",
    "text_topk": "text_top_k",
    "repetition_penalty": "repetition_penalty",
}
"""Parameters that choose how a session samples, and their names in the engine."""

PARAMETERS: Final = (
    "audio",
    "rate",
    *SETTINGS,
    "seed",
    "audio_seed",
    "max_s",
    "max_steps",
    "record",
    "resume",
    "token",
)
"""All parameters that mean something; ``token`` is looked at before, see ``guard``."""

WITHOUT_EFFECT: Final = (
    "text_seed",
    "pad_mult",
    "repetition_penalty_context",
    "email",
    "worker_auth_id",
)
"""Parameters of the Rust server and its page that change nothing here."""

_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER: Final = re.compile(
    r"[+-]?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,3})?"
)
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_SHOWN_CHARS: Final = 40
_MAX_STEPS: Final = 2**31 - 1


class BadRequest(Exception):
    """A parameter cannot be used; the message says which, and what it should have been."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for.

    Attributes:
        audio: Format of audio messages, both ways.
        rate: Hz of the samples that the client sends; of Opus, the model's.
        settings: How to sample, by the engine's names; what is not in it is as configured.
        seed: Of its random numbers; None lets the engine choose.
        max_s: Longest conversation, in seconds; None is as long as there may be.
        record: Whether it consents to being kept.
        resume: Token of the conversation that it wants back.
        num_ignored: Parameters of the query that are not known.
    """

    audio: AudioFormat = AudioFormat.OGG_OPUS
    rate: int = 24_000
    settings: Mapping[str, float | int] = field(default_factory=dict)
    seed: int | None = None
    max_s: float | None = None
    record: bool = False
    resume: str | None = None
    num_ignored: int = 0

    def to_link(self) -> dict[str, Any]:
        """As the engine's process is told, in JSON's types."""
        return {
            "audio": self.audio.value,
            "rate": self.rate,
            "settings": dict(self.settings),
            "seed": self.seed,
            "max_s": self.max_s,
            "record": self.record,
            "resume": self.resume,
        }


def parse_request(query: str, facts: Mapping[str, Any]) -> Request:
    """Read the query of a client.

    Of a parameter that comes more than once the last one counts. Parameters that are not known are
    counted and change nothing.

    Args:
        query: What follows ``?``, percent-encoded.
        facts: Bounds, as :func:`moshi_pipe.server.info.edge_facts` gives them.

    Raises:
        BadRequest: A value is not what it should be.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise BadRequest(f"there may be {MAX_FIELDS} parameters at most") from error
    values = dict(pairs)
    audio = _format(values, facts)
    sample_rate = int(facts["sample_rate"])
    rate = _whole(values, "rate", MIN_RATE, MAX_RATE)
    audio_seed = _whole(values, "audio_seed", 0, MAX_SEED)
    seed = _whole(values, "seed", 0, MAX_SEED)
    return Request(
        audio=audio,
        rate=sample_rate if rate is None or audio is AudioFormat.OGG_OPUS else rate,
        settings=_settings(values, facts["settings"]),
        seed=audio_seed if seed is None else seed,
        max_s=_max_s(values, facts),
        record=_record(values),
        resume=_resume(values),
        num_ignored=sum(name not in (*PARAMETERS, *WITHOUT_EFFECT) for name in values),
    )


def _format(values: Mapping[str, str], facts: Mapping[str, Any]) -> AudioFormat:
    offered = [str(one) for one in facts.get("formats", [one.value for one in AudioFormat])]
    asked = values.get("audio", AudioFormat.OGG_OPUS.value)
    if asked not in offered:
        raise _bad("audio", f"one of {', '.join(offered)}", asked)
    return AudioFormat(asked)


def _settings(values: Mapping[str, str], bounds: Mapping[str, Any]) -> dict[str, float | int]:
    settings: dict[str, float | int] = {}
    for name, inside in SETTINGS.items():
        low, high = bounds[name]["min"], bounds[name]["max"]
        read = _whole if name.endswith("_topk") else _number
        value = read(values, name, low, high)
        if value is not None:
            settings[inside] = value
    return settings


def _max_s(values: Mapping[str, str], facts: Mapping[str, Any]) -> float | None:
    """The longest conversation, from either parameter; the shorter one where there are both.

    Steps are cut to the bounds, as the Rust server does: its clients always send a large number.
    """
    bounds = facts["settings"].get("max_s", {})
    low = float(bounds.get("min", 1.0))
    high = float(bounds.get("max", facts["limits"]["max_s"]))
    max_s = _number(values, "max_s", min(low, high), high)
    steps = _whole(values, "max_steps", 1, _MAX_STEPS)
    if steps is None:
        return max_s
    steps_s = steps * int(facts["frame_samples"]) / int(facts["sample_rate"])
    steps_s = min(max(steps_s, low), high)
    return steps_s if max_s is None else min(max_s, steps_s)


def _record(values: Mapping[str, str]) -> bool:
    asked = values.get("record", "0")
    if asked not in ("0", "1"):
        raise _bad("record", "0 or 1", asked)
    return asked == "1"


def _resume(values: Mapping[str, str]) -> str | None:
    token = values.get("resume")
    if token is not None and not _TOKEN.fullmatch(token):
        raise BadRequest("resume must be a token that the server gave")  # which is not to be shown
    return token


def _number(values: Mapping[str, str], name: str, low: float, high: float) -> float | None:
    text = values.get(name)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text) or not low <= (number := float(text)) <= high:
        raise _bad(name, f"{low:g} to {high:g}", text)
    return number


def _whole(values: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    text = values.get(name)
    if text is None:
        return None
    if not _WHOLE.fullmatch(text):
        raise _bad(name, f"a whole number, {low} to {high}", text)
    if not low <= (number := int(text)) <= high:
        raise _bad(name, f"{low} to {high}", text)
    return number


def _bad(name: str, wanted: str, got: str) -> BadRequest:
    return BadRequest(f"{name} must be {wanted}, got {escaped(got, _SHOWN_CHARS) or 'nothing'}")
