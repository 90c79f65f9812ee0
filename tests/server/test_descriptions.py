"""The protocol's pages and its code say the same."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from server.fake_edge import FakeHost
from starlette.routing import Route, WebSocketRoute
from support.schema import faults, follow, refs

from moshi_pipe.server import messages
from moshi_pipe.server.app import make_app
from moshi_pipe.server.counts import ServerCounts
from moshi_pipe.server.guest import Guest
from moshi_pipe.server.info import edge_facts, server_info, session_metadata
from moshi_pipe.server.lobby import Lobby, LobbyRules, Seat
from moshi_pipe.server.messages import AudioFormat, Close, Control, Kind
from moshi_pipe.server.options import ServerOptions
from moshi_pipe.server.request import (
    MAX_RATE,
    MAX_SEED,
    MIN_RATE,
    PARAMETERS,
    WITHOUT_EFFECT,
    parse_request,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PROTOCOL = (DOCS / "protocol.md").read_text(encoding="utf-8")
ASYNC: dict[str, Any] = yaml.safe_load((DOCS / "asyncapi.yaml").read_text(encoding="utf-8"))
OPEN: dict[str, Any] = yaml.safe_load((DOCS / "openapi.yaml").read_text(encoding="utf-8"))
QUERY = ASYNC["channels"]["chat"]["bindings"]["ws"]["query"]["properties"]
SOURCES = sorted((ROOT / "moshi_pipe" / "server").glob("*.py"))


def section(name: str) -> str:
    """The part of the page under a heading."""
    (text,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", PROTOCOL, re.MULTILINE | re.DOTALL)
    return str(text)


def rows(text: str) -> list[list[str]]:
    """Cells of the rows of all tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rules = [n for n, row in enumerate(found) if set(row[0]) == {"-"}]
    heads = {n - 1 for n in rules} | set(rules)
    return [row for n, row in enumerate(found) if n not in heads]


def words(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# messages


def test_the_page_lists_the_kinds_that_there_are() -> None:
    listed = {int(row[0]): row[1] for row in rows(section("Messages"))}
    assert listed == {kind.value: kind.name.lower() for kind in Kind}
    assert f"at most {messages.MAX_PING} bytes" in section("Messages")


def test_the_description_lists_the_kinds_that_there_are() -> None:
    described = ASYNC["components"]["messages"]
    assert {name: one["x-kind"] for name, one in described.items()} == {
        kind.name.lower(): kind.value for kind in Kind
    }
    assert set(ASYNC["channels"]["chat"]["messages"]) == set(described)
    assert described["ping"]["payload"]["maxLength"] == messages.MAX_PING


def test_both_list_the_controls_that_there_are() -> None:
    listed = {int(row[0]): row[1].replace(" of ", "_") for row in rows(section("Control"))}
    described = ASYNC["components"]["messages"]["control"]["x-values"]
    wanted = {control.value: control.name.lower() for control in Control}
    assert listed == wanted
    assert {value: name for name, value in described.items()} == wanted


def test_both_list_the_formats_that_there_are() -> None:
    listed = [words(row[0])[0] for row in rows(section("Audio"))]
    assert listed == [one.value for one in AudioFormat]
    assert QUERY["audio"]["enum"] == listed


# parameters


def test_the_page_lists_the_parameters_that_there_are() -> None:
    text = section("Parameters")
    assert [words(row[0])[0] for row in rows(text)] == list(PARAMETERS)
    (quiet,) = re.findall(r"^(.*?), which clients of the Rust server send", text, re.MULTILINE)
    assert set(words(quiet)) == set(WITHOUT_EFFECT)
    assert f"| `rate` | {MIN_RATE} to {MAX_RATE} |" in text


def test_the_description_lists_the_parameters_with_their_bounds() -> None:
    assert list(QUERY) == list(PARAMETERS)
    assert (QUERY["rate"]["minimum"], QUERY["rate"]["maximum"]) == (MIN_RATE, MAX_RATE)
    assert QUERY["seed"]["maximum"] == MAX_SEED
    bounds = edge_facts(FakeHost().facts, ServerOptions())["settings"]
    for name, one in bounds.items():
        if name in QUERY:
            assert QUERY[name]["minimum"] == one["min"], name
            assert QUERY[name].get("maximum", one["max"]) == one["max"], name


# closes and errors


def test_the_page_lists_all_closes_and_reasons() -> None:
    listed: dict[int, list[str]] = {}
    for row in rows(section("Errors and closes")):
        if re.fullmatch(r"1\d\d\d", row[0]):
            listed.setdefault(int(row[0]), []).extend(word.split(":")[0] for word in words(row[1]))
    assert listed == reasons()
    described = ASYNC["channels"]["chat"]["x-reasons"]
    assert {int(code): one for code, one in described.items()} == reasons()


def reasons() -> dict[int, list[str]]:
    found: dict[int, list[str]] = {close.value: [] for close in Close}
    for reason, close in messages.REASONS.items():
        found[close.value].append(reason)
    return found


def test_the_page_lists_all_words_of_errors() -> None:
    text = section("Errors and closes")
    (ending,) = re.findall(r"^Errors with these words.*?: (.*?)\. Two", text, re.MULTILINE | re.S)
    (others,) = re.findall(r"^`.*? Two do not end anything:\n(.*?)\.$", text, re.MULTILINE | re.S)
    assert {*words(ending), *words(others)} == set(messages.ERRORS)
    assert ASYNC["components"]["messages"]["error"]["x-words"] == list(messages.ERRORS)


def test_the_code_sends_the_words_that_are_listed_and_no_others() -> None:
    found: set[str] = set()
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r'messages\.error\("(\w+)"', text))
        found |= set(re.findall(r'_send_away\("(\w+)"', text))
        found |= set(re.findall(r'Close\.\w+, "\w+", f?"(\w+): ', text))
        found |= set(re.findall(r'^\s+f?"(\w+): [a-z].*",$', text, re.MULTILINE))
        found |= set(re.findall(r'(?:error = |reason, )f?"(\w+): ', text))
        found |= set(re.findall(r'_refuse\(\s*socket, Close\.\w+, "(\w+)"', text))
    assert found == set(messages.ERRORS)


# metadata


def literals() -> Iterator[tuple[str, set[str]]]:
    """Every ``{"type": ...}`` that the code writes: its type, and its keys."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Dict):
                continue
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            if keys[:1] == ["type"] and isinstance(node.values[0], ast.Constant):
                yield str(node.values[0].value), {str(key) for key in keys}


def test_the_description_has_the_metadata_that_the_code_writes() -> None:
    schemas = ASYNC["components"]["schemas"]
    written = {kind: keys for kind, keys in literals() if kind in messages.METADATA}
    assert set(written) == set(messages.METADATA) == set(schemas)
    for kind, keys in written.items():
        assert keys == set(schemas[kind]["properties"]) == set(schemas[kind]["required"]), kind
        assert schemas[kind]["properties"]["type"] == {"const": kind}


def test_the_page_has_the_metadata_that_there_is() -> None:
    text = section("Metadata")
    for row in rows(text):
        (kind,) = words(row[0])
        keys = set(ASYNC["components"]["schemas"][kind]["properties"]) - {"type"}
        assert keys <= set(words(f"{row[1]} {row[2]}")), kind
    listed = {words(row[0])[0] for row in rows(text)}
    assert listed | {"session"} == set(messages.METADATA)
    (shown,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert list(faults(json.loads(shown), ASYNC["components"]["schemas"]["session"], ASYNC)) == []


def test_a_real_session_is_as_it_is_described() -> None:
    options, host = ServerOptions(), FakeHost()
    request = parse_request("audio=pcm_s16le&rate=16000&seed=3", edge_facts(host.facts, options))
    guest = Guest(
        Seat("token", None),
        request.to_link(),
        sample_rate=24_000,
        frame_s=0.08,
        max_s=600.0,
        idle_s=60.0,
        record=False,
        lossless=False,
        counts=ServerCounts(),
        now_s=lambda: 0.0,
        on_over=lambda _: None,
    )
    session = session_metadata(host.facts, options, guest, request.to_link(), resumed=False)
    assert list(faults(session, ASYNC["components"]["schemas"]["session"], ASYNC)) == []


# HTTP


def test_the_routes_are_those_that_are_described() -> None:
    front: Any = SimpleNamespace()
    app: Any = make_app(front, {"/": SimpleNamespace()})  # type: ignore[dict-item]
    while not hasattr(app, "routes"):
        (app,) = [one for one in vars(app).values() if callable(one)]
    routes = {route.path for route in app.routes if isinstance(route, (Route, WebSocketRoute))}
    assert routes == set(OPEN["paths"])
    listed = {words(row[0])[0] for row in rows(section("HTTP"))}
    assert listed | {ASYNC["channels"]["chat"]["address"]} == routes


def test_answers_instead_of_an_upgrade_are_listed() -> None:
    described = set(OPEN["paths"]["/api/chat"]["get"]["responses"]) - {"101"}
    listed = {row[0] for row in rows(section("Errors and closes")) if re.match("[45]", row[0])}
    assert listed == described


def test_the_info_is_as_it_is_described() -> None:
    doors: Any = SimpleNamespace()
    host: Any = FakeHost()
    lobby = Lobby(LobbyRules(4, 30, 0), doors, lambda: 0.0)
    info = server_info(host, ServerOptions(), lobby)
    assert list(faults(info, OPEN["components"]["schemas"]["info"], OPEN)) == []


@pytest.mark.parametrize("described", [ASYNC, OPEN], ids=["asyncapi", "openapi"])
def test_references_lead_somewhere(described: dict[str, Any]) -> None:
    for ref in refs(described):
        assert follow(ref, described)


def test_examples_in_python_are_python() -> None:
    for code in re.findall(r"```python\n(.*?)```", PROTOCOL, re.DOTALL):
        ast.parse(code)
