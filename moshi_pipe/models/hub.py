"""Files from the Hugging Face hub: pinned, resumable, or from the cache alone.

The hub client keeps partial downloads and goes on where it stopped. Nothing here is called unless
a model is asked for by repository.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies

from moshi_pipe.errors import CheckpointError

_CONNECT_TIMEOUT_S: Final = 5.0


def is_offline(option: bool) -> bool:
    """Whether the network must not be used: by option or by ``HF_HUB_OFFLINE``."""
    return option or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def download(
    repo: str,
    filename: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    missing_ok: bool = False,
) -> Path | None:
    """Bring one file of a repository into the cache, with the hub client's progress bar.

    Args:
        repo: ``owner/name``.
        filename: Path inside the repository.
        revision: Branch, tag or commit; None takes ``main``.
        offline: Use only what the cache holds, as ``HF_HUB_OFFLINE=1`` does.
        missing_ok: Return None when the repository surely has no such file.

    Returns:
        Where the file lies in the cache; None only with ``missing_ok``.

    Raises:
        CheckpointError: The file cannot be had. Says which file of which repository, why, and how
            to provide it otherwise.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    offline = is_offline(offline)
    unreachable = None if offline else _unreachable()
    try:
        path = hf_hub_download(
            repo,
            filename,
            revision=revision,
            local_files_only=offline or unreachable is not None,
            endpoint=os.environ.get("HF_ENDPOINT") or None,
        )
    except Exception as error:
        absent = isinstance(error, EntryNotFoundError)
        if absent and missing_ok and not isinstance(error, LocalEntryNotFoundError):
            return None
        if missing_ok and (offline or unreachable) and _cached_without(repo, filename, revision):
            return None
        reason, fix = _reason(error, repo, unreachable)
        raise _explained(repo, filename, revision, reason, fix) from error
    return Path(path)


def _unreachable() -> str | None:
    """Why the hub's host does not answer; None if it does, or if a proxy stands between.

    The client itself retries for more than 20 s in silence before it gives up.
    """
    url = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if not url.hostname or getproxies().get(url.scheme):
        return None
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return f"{url.hostname}: {error.strerror or error}"
    return None


def _cached_without(repo: str, filename: str, revision: str | None) -> bool:
    """Whether the cache remembers that the repository has no such file."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(repo, filename, revision=revision) is _CACHED_NO_EXIST


def _explained(
    repo: str, filename: str, revision: str | None, reason: str, fix: str
) -> CheckpointError:
    """Say what a person can act on."""
    at = f" at revision '{revision}'" if revision else ""
    pinned = f" --revision {revision}" if revision else ""
    elsewhere = (
        f"on a machine with a network run: hf download {repo}{pinned} --local-dir DIR\n"
        "then give that folder: model.path=DIR"
    )
    return CheckpointError(
        f"cannot get '{filename}' of {repo}{at} from the hub",
        got=reason,
        fix=f"{fix}\n{elsewhere}" if fix else elsewhere,
    )


def _reason(error: Exception, repo: str, unreachable: str | None) -> tuple[str, str]:
    """Why a download failed, and what helps against it besides another source."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{repo}"
        return (
            "the repository is gated: its licence must be accepted by a logged-in user",
            f"accept the licence on {page}, then run: hf auth login",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "no such repository, or it is private",
            "check model.repo; for a private one run: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision", "check model.revision"
    if isinstance(error, errors.HFValidationError):
        return f"'{repo}' is not a repository name", "give it as owner/name"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if unreachable is not None or error.__cause__ is not None:
            cause = unreachable or _innermost(error)
            return f"the hub cannot be reached ({cause}), and the file is not in the cache", ""
        return (
            "offline mode, and the file is not in the cache",
            "unset HF_HUB_OFFLINE and model.offline once, with a network",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return (
            "the repository has no such file",
            "check the names in its config.json, or model.*_file",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror} ({error.filename or 'cache folder'})", "check disk and HF_HOME"
    return f"{type(error).__name__}: {_first_line(error)}", ""


def _innermost(error: BaseException) -> str:
    """Innermost reason of a chain of exceptions, on one line."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
