from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.edge import edge, run
from websockets.asyncio.client import connect

from moshi_pipe.server.messages import AudioFormat
from moshi_pipe.server.request import (
    MAX_FIELDS,
    MAX_SEED,
    PARAMETERS,
    WITHOUT_EFFECT,
    BadRequest,
    Request,
    parse_request,
)

FACTS: dict[str, Any] = {
    "formats": ["ogg_opus", "pcm_s16le", "pcm_f32le"],
    "sample_rate": 24000,
    "frame_samples": 1920,
    "lossless": False,
    "limits": {"max_s": 600.0, "idle_s": 60.0, "message_bytes": 65536, "messages_per_s": 200},
    "settings": {
        "audio_temperature": {"min": 0.0, "max": 2.0, "default": 0.8},
        "text_temperature": {"min": 0.0, "max": 2.0, "default": 0.7},
        "audio_topk": {"min": 1, "max": 250, "default": 250},
        "text_topk": {"min": 1, "max": 100, "default": 25},
        "repetition_penalty": {"min": 1.0, "max": 2.0, "default": 1.0},
        "max_s": {"min": 1.0, "max": 600.0, "default": 600.0},
        "recording": {"offered": True},
    },
}


def test_an_empty_query_asks_for_nothing_special() -> None:
    request = parse_request("", FACTS)
    assert request == Request()
    assert request.to_link() == {
        "audio": "ogg_opus",
        "rate": 24000,
        "settings": {},
        "seed": None,
        "max_s": None,
        "record": False,
        "resume": None,
    }


def test_every_parameter_reaches_its_field() -> None:
    request = parse_request(
        "audio=pcm_s16le&rate=16000&audio_temperature=0.5&text_temperature=0&audio_topk=20"
        "&text_topk=7&repetition_penalty=1.25&seed=42&max_s=12.5&record=1&resume=abc_-9&token=s",
        FACTS,
    )
    assert request == Request(
        audio=AudioFormat.PCM_S16LE,
        rate=16000,
        settings={
            "temperature": 0.5,
            "text_temperature": 0.0,
            "top_k": 20,
            "text_top_k": 7,
            "repetition_penalty": 1.25,
        },
        seed=42,
        max_s=12.5,
        record=True,
        resume="abc_-9",
    )


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("audio_temperature=7", "audio_temperature must be 0 to 2, got 7"),
        ("audio_temperature=nan", "audio_temperature must be 0 to 2, got nan"),
        ("text_temperature=-0.1", "text_temperature must be 0 to 2, got -0.1"),
        ("text_temperature=", "text_temperature must be 0 to 2, got nothing"),
        ("audio_temperature=1_0", "audio_temperature must be 0 to 2, got 1_0"),
        ("audio_temperature=%D9%A1", r"audio_temperature must be 0 to 2, got \u0661"),
        ("audio_topk=0", "audio_topk must be 1 to 250, got 0"),
        ("text_topk=101", "text_topk must be 1 to 100, got 101"),
        ("text_topk=2.5", "text_topk must be a whole number, 1 to 100, got 2.5"),
        ("repetition_penalty=0.5", "repetition_penalty must be 1 to 2, got 0.5"),
        ("seed=-1", f"seed must be 0 to {MAX_SEED}, got -1"),
        (f"seed={MAX_SEED + 1}", f"seed must be 0 to {MAX_SEED}, got {MAX_SEED + 1}"),
        ("audio_seed=x", f"audio_seed must be a whole number, 0 to {MAX_SEED}, got x"),
        ("rate=7999", "rate must be 8000 to 48000, got 7999"),
        ("rate=96000", "rate must be 8000 to 48000, got 96000"),
        ("max_s=0", "max_s must be 1 to 600, got 0"),
        ("max_s=601", "max_s must be 1 to 600, got 601"),
        ("max_steps=0", "max_steps must be 1 to 2147483647, got 0"),
        ("record=yes", "record must be 0 or 1, got yes"),
        ("audio=mp3", "audio must be one of ogg_opus, pcm_s16le, pcm_f32le, got mp3"),
        ("resume=a/b", "resume must be a token that the server gave"),
        ("resume=", "resume must be a token that the server gave"),
        ("rate=%0Aa%1b[31m", r"rate must be a whole number, 8000 to 48000, got \na\x1b[31m"),
    ],
)
def test_a_bad_value_is_named_with_what_it_should_be(query: str, message: str) -> None:
    with pytest.raises(BadRequest) as error:
        parse_request(query, FACTS)
    assert str(error.value) == message


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(BadRequest) as error:
        parse_request("rate=" + "9" * 5000, FACTS)
    assert len(str(error.value)) < 150


def test_the_last_of_several_values_counts() -> None:
    assert parse_request("seed=1&seed=2", FACTS).seed == 2


def test_a_seed_goes_before_its_alias() -> None:
    assert parse_request("audio_seed=1", FACTS).seed == 1
    assert parse_request("audio_seed=1&seed=2", FACTS).seed == 2


def test_steps_are_frames_cut_to_what_is_allowed() -> None:
    assert parse_request("max_steps=125", FACTS).max_s == 10.0
    assert parse_request("max_steps=1", FACTS).max_s == 1.0
    assert parse_request("max_steps=1000000", FACTS).max_s == 600.0
    assert parse_request("max_steps=125&max_s=5", FACTS).max_s == 5.0
    assert parse_request("max_steps=125&max_s=50", FACTS).max_s == 10.0


def test_the_rate_is_that_of_samples_and_means_nothing_for_opus() -> None:
    assert parse_request("rate=48000", FACTS).rate == 24000
    assert parse_request("rate=48000&audio=pcm_f32le", FACTS).rate == 48000


def test_what_is_not_known_is_counted_and_changes_nothing() -> None:
    assert parse_request("cfg=3&voice=x", FACTS) == Request(num_ignored=2)
    quiet = urlencode(dict.fromkeys(WITHOUT_EFFECT, "1"))
    assert parse_request(quiet, FACTS) == Request()


def test_an_edge_counts_requests_with_unknown_parameters() -> None:
    async def talk() -> None:
        async with edge() as one:
            for query in ("", "?text_seed=1", "?voice=x&cfg=3"):
                async with connect(one.url + query) as client:
                    assert await client.recv() == b"\x00"
            name = "requests.unknown_parameters"
            await one.engine.until(lambda: one.engine.counted(name) == 1)

    run(talk)


def test_the_query_of_the_references_page_is_taken() -> None:
    query = (
        "text_temperature=0.7&text_topk=25&audio_temperature=0.8&audio_topk=250&pad_mult=0"
        "&text_seed=271828&audio_seed=314159&repetition_penalty_context=64&repetition_penalty=1"
    )
    request = parse_request(query, FACTS)
    assert request.seed == 314159
    assert request.settings["top_k"] == 250
    assert request.num_ignored == 0


def test_there_is_an_end_to_parameters() -> None:
    with pytest.raises(BadRequest, match=r"^there may be 64 parameters at most$"):
        parse_request("&".join(f"a{n}=1" for n in range(MAX_FIELDS + 1)), FACTS)


def test_all_that_goes_to_the_engine_is_json() -> None:
    request = parse_request("audio=pcm_f32le&audio_topk=3&max_s=4", FACTS)
    assert json.loads(json.dumps(request.to_link())) == request.to_link()


@given(
    st.one_of(
        st.text(),
        st.lists(st.tuples(st.sampled_from(PARAMETERS), st.text())).map(urlencode),
        st.lists(st.tuples(st.sampled_from(PARAMETERS), st.one_of(st.integers(), st.floats()))).map(
            urlencode
        ),
    )
)
@settings(max_examples=300, deadline=None)
def test_any_query_is_taken_within_bounds_or_refused(query: str) -> None:
    try:
        request = parse_request(query, FACTS)
    except BadRequest as error:
        said = str(error)
    else:
        said = ""
        _check_bounds(request)
    assert said.isascii()
    assert len(said) < 200


def _check_bounds(request: Request) -> None:
    for name, outside in (("audio_temperature", "temperature"), ("text_topk", "text_top_k")):
        bounds = FACTS["settings"][name]
        value = request.settings.get(outside, bounds["min"])
        assert bounds["min"] <= value <= bounds["max"]
    assert 8000 <= request.rate <= 48000
    assert request.seed is None or 0 <= request.seed <= MAX_SEED
    assert request.max_s is None or 1 <= request.max_s <= 600
