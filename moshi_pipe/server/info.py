"""What a server says of itself: ``/api/info``, the facts for edges, a conversation's metadata."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from moshi_pipe.report import versions
from moshi_pipe.server.messages import PROTOCOL, AudioFormat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moshi_pipe.graph.host import Host, RunFacts
    from moshi_pipe.server.guest import Guest
    from moshi_pipe.server.lobby import Lobby
    from moshi_pipe.server.options import ServerOptions


@cache
def server_name() -> str:
    """Name and version."""
    return f"moshi-pipe {versions()['moshi-pipe']}"


def edge_facts(facts: RunFacts, options: ServerOptions) -> dict[str, Any]:
    """What an edge process needs to answer clients by itself."""
    return {
        "formats": [one.value for one in AudioFormat],
        "sample_rate": facts.sample_rate,
        "frame_samples": facts.frame_samples,
        "lossless": facts.late == "slow_down",
        "limits": _limits(options),
        "settings": _settings(facts, options),
    }


def server_info(host: Host, options: ServerOptions, lobby: Lobby) -> dict[str, Any]:
    """The whole of ``/api/info``."""
    facts = host.facts
    return {
        "server": server_name(),
        "protocol": PROTOCOL,
        "model": {"name": facts.model, "type": facts.model_type, "random": facts.random},
        "backend": facts.backend,
        "device": facts.device,
        "dtype": facts.dtype,
        "quant": facts.quant,
        "slots": slot_numbers(host, lobby),
        "frame_ms": round(facts.frame_s * 1000, 3),
        **edge_facts(facts, options),
        "auth": options.token_env is not None,
        "versions": versions(),
    }


def slot_numbers(host: Host, lobby: Lobby) -> dict[str, int]:
    """Slots in all and as they are used, and who waits."""
    return {
        "total": host.facts.slots,
        "usable": host.usable_slots,
        "used": lobby.used,
        "parked": lobby.num_parked,
        "waiting": lobby.waiting,
    }


def session_metadata(
    facts: RunFacts,
    options: ServerOptions,
    guest: Guest,
    request: Mapping[str, Any],
    resumed: bool,
) -> dict[str, Any]:
    """The ``session`` metadata: what a client gets, and what it may do."""
    sampling = {
        "audio_temperature": facts.settings.temperature,
        "text_temperature": facts.settings.text_temperature,
        "audio_topk": facts.settings.top_k,
        "text_topk": facts.settings.text_top_k,
        "repetition_penalty": facts.settings.repetition_penalty,
    }
    names = {"temperature": "audio_temperature", "top_k": "audio_topk", "text_top_k": "text_topk"}
    sampling.update({names.get(name, name): value for name, value in guest.settings.items()})
    return {
        "type": "session",
        "protocol": PROTOCOL,
        "server": server_name(),
        "model": facts.model,
        "session": guest.id,
        "resume": {"token": guest.seat.token, "s": options.resume_s},
        "resumed": resumed,
        "seed": guest.seed,
        "audio": {
            "format": request.get("audio", AudioFormat.OGG_OPUS.value),
            "sample_rate": facts.sample_rate,
            "frame_samples": facts.frame_samples,
            "channels": 1,
            "rate_in": request.get("rate", facts.sample_rate),
        },
        "limits": {**_limits(options), "max_s": guest.max_s, "left_s": round(guest.left_s, 3)},
        "sampling": sampling,
        "recording": guest.record,
    }


def _limits(options: ServerOptions) -> dict[str, Any]:
    return {
        "max_s": options.max_s,
        "idle_s": options.idle_s,
        "message_bytes": options.message_bytes,
        "messages_per_s": options.messages_per_s,
        "connections_per_address": options.connections_per_address,
    }


def _settings(facts: RunFacts, options: ServerOptions) -> dict[str, Any]:
    """Bounds and defaults of what a client may ask for."""
    own = facts.settings
    return {
        "audio_temperature": {"min": 0.0, "max": 2.0, "default": own.temperature},
        "text_temperature": {"min": 0.0, "max": 2.0, "default": own.text_temperature},
        "audio_topk": {"min": 1, "max": facts.max_top_k, "default": own.top_k},
        "text_topk": {"min": 1, "max": facts.max_text_top_k, "default": own.text_top_k},
        "repetition_penalty": {"min": 1.0, "max": 2.0, "default": own.repetition_penalty},
        "max_s": {"min": 1.0, "max": options.max_s, "default": options.max_s},
        "recording": {"offered": options.recording},
    }
