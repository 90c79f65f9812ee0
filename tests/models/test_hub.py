"""Files from a hub: a tiny server in the test stands for it."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants
import pytest

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.checkpoint import ModelOptions, open_checkpoint
from moshi_pipe.models.hub import download

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "a" * 40
MIMI_ONLY = b'{"mimi_name": "hf://other/codec/sub/mimi.safetensors"}'
FILES = {
    ("me/model", "config.json"): b'{"model_type": "moshi"}',
    ("me/linked", "config.json"): MIMI_ONLY,
    ("other/codec", "sub/mimi.safetensors"): b"weights",
}
STATUS = {"gated/model": (403, "GatedRepo"), "me/nothing": (404, "RepoNotFound")}


class HubServer(ThreadingHTTPServer):
    """Remembers what it was asked for: repository, revision, path."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[tuple[str, str, str]] = []


class Handler(BaseHTTPRequestHandler):
    """Answers ``/owner/name/resolve/revision/path`` as the hub does."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        owner, name, verb, revision, *path = self.path.split("?")[0].strip("/").split("/")
        repo = f"{owner}/{name}"
        assert isinstance(self.server, HubServer)
        self.server.asked.append((repo, revision, "/".join(path)))
        data = FILES.get((repo, "/".join(path)))
        known = any(repo == r for r, _ in FILES)
        if repo in STATUS:
            self.refuse(*STATUS[repo])
            return
        if known and revision not in ("main", "v1", COMMIT):
            self.refuse(404, "RevisionNotFound")
            return
        if verb != "resolve" or data is None:
            self.refuse(404, "EntryNotFound" if known else "RepoNotFound")
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hash(data) & 0xFFFF:x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    server = HubServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_file_comes_into_the_cache_and_stays_there_offline(hub: HubServer) -> None:
    path = download("me/model", "config.json")
    again = download("me/model", "config.json", offline=True)

    assert path is not None
    assert path.read_bytes() == FILES["me/model", "config.json"]
    assert again == path


def test_a_pinned_revision_is_what_is_asked_for(hub: HubServer) -> None:
    download("me/model", "config.json", revision="v1")

    assert {revision for _, revision, _ in hub.asked} <= {"v1", COMMIT}


def test_a_revision_is_not_passed_to_another_repository(hub: HubServer) -> None:
    options = ModelOptions(name="linked", repo="me/linked", revision="v1")

    checkpoint = open_checkpoint(options, parts=("mimi",))

    assert checkpoint.mimi_weights is not None
    assert checkpoint.mimi_weights.read_bytes() == b"weights"
    revisions = {revision for repo, revision, _ in hub.asked if repo == "other/codec"}
    assert "v1" not in revisions


@pytest.mark.parametrize(
    ("repo", "name", "revision", "reason"),
    [
        ("me/model", "lost.safetensors", None, "the repository has no such file"),
        ("me/nothing", "config.json", None, "no such repository, or it is private"),
        ("gated/model", "config.json", None, "the repository is gated"),
        ("me/model", "config.json", "v9", "the repository has no such revision"),
        ("a b/c d", "config.json", None, "is not a repository name"),
    ],
    ids=["entry", "repository", "gated", "revision", "name"],
)
def test_what_cannot_be_had_is_named_with_the_reason(
    hub: HubServer, repo: str, name: str, revision: str | None, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        download(repo, name, revision=revision)

    assert caught.value.what.startswith(f"cannot get '{name}' of {repo}")
    assert f"hf download {repo}" in str(caught.value)
    assert "model.path=DIR" in str(caught.value)


def test_a_missing_file_may_be_asked_for(hub: HubServer) -> None:
    assert download("me/model", "lost.json", missing_ok=True) is None


def test_offline_without_the_file_says_so(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(CheckpointError, match="offline mode, and the file is not in the cache"):
        download("me/model", "config.json")

    assert hub.asked == []


def test_a_hub_that_cannot_be_reached_says_so(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    with pytest.raises(CheckpointError, match="the hub cannot be reached") as caught:
        download("me/model", "config.json")

    assert "'config.json' of me/model" in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_not_needed_for_what_the_cache_holds(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = download("me/model", "config.json")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    assert download("me/model", "config.json") == path
