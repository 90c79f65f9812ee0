"""Files at addresses: ``s3://``, ``gs://``, ``hf://``, ``file://`` and what else fsspec knows.

fsspec comes with torch; what speaks to one service is a package of its own, such as s3fs, and the
error says which. Nothing here is kept open between calls.
"""

from __future__ import annotations

import io
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, TextIO

from moshi_pipe.errors import ConfigError, InputError, MoshiPipeError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LOCAL: Final = ("file", "local")


def is_url(text: str) -> bool:
    """Whether a text is an address, not a path."""
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme.replace("+", "").replace("-", "").replace(":", "").isalnum()


def local_path(text: str, what: str) -> Path:
    """A path, where an address cannot be.

    Args:
        text: What the user wrote.
        what: It is for.

    Raises:
        ConfigError: It is an address.
    """
    if is_url(text):
        raise ConfigError(
            f"{what} takes a path, not an address",
            got=text,
            fix="copy it here first, or name the folder where it is",
        )
    return Path(text)


def join(base: str, name: str) -> str:
    """The address of ``name``, relative to the folder ``base``; an address stays itself."""
    return name if is_url(name) else f"{base.rstrip('/')}/{name}"


def parent(url: str) -> str:
    """The folder of an address."""
    return url.rstrip("/").rpartition("/")[0]


def as_path(place: str) -> PurePosixPath:
    """An address or a path as a path without its scheme, for what names are made of."""
    return PurePosixPath(place.partition("://")[2] if is_url(place) else place)


@contextmanager
def open_text(url: str) -> Iterator[TextIO]:
    """Open UTF-8 text, to be read line by line; a byte order mark is left out.

    Raises:
        InputError: It cannot be read; names the address and the reason.
    """
    with _explained(url, InputError):
        filesystem, path = _filesystem(url)
        file = filesystem.open(path, "rb")
    with file, io.TextIOWrapper(file, encoding="utf-8-sig") as text:
        yield text


def read_text(url: str) -> str | None:
    """The UTF-8 text at an address; None where there is nothing.

    Raises:
        InputError: It is there and cannot be read.
    """
    with _explained(url, InputError):
        filesystem, path = _filesystem(url)
        try:
            return str(filesystem.cat_file(path).decode("utf-8"))
        except FileNotFoundError:
            return None


def exists(url: str) -> bool:
    """Whether there is a file.

    Raises:
        InputError: The place cannot be looked at.
    """
    with _explained(url, InputError):
        filesystem, path = _filesystem(url)
        return bool(filesystem.isfile(path))


def fetch(url: str, path: Path) -> None:
    """Copy a file from an address.

    Raises:
        InputError: It cannot be read; names the address and the reason.
    """
    with _explained(url, InputError):
        filesystem, source = _filesystem(url)
        filesystem.get_file(source, str(path))


def put(path: Path, url: str) -> None:
    """Copy a file to an address, where it appears whole or not at all.

    Stores of objects do so by themselves; in a file system it gets another name first.

    Raises:
        OutputError: It cannot be written; names the address and the reason.
    """
    with _explained(url, OutputError):
        filesystem, target = _filesystem(url)
        if not _is_local(filesystem):
            filesystem.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
            filesystem.put_file(str(path), target)
            return
        whole = Path(target)
        part = whole.with_name(f".{whole.name}.{path.stat().st_ino}.part")
        whole.parent.mkdir(parents=True, exist_ok=True)
        try:
            filesystem.put_file(str(path), str(part))
            part.replace(whole)
        finally:
            part.unlink(missing_ok=True)


def find(url: str, suffixes: Sequence[str], *, recursive: bool = False) -> list[str]:
    """Addresses of files: one, those of a pattern, or those of a folder; sorted.

    Args:
        url: A file, a pattern with ``*`` or a folder.
        suffixes: Endings that are taken from a folder, lower case with the dot.
        recursive: Look into sub-folders too.

    Raises:
        InputError: Nothing is there, or it cannot be looked at.
    """
    with _explained(url, InputError):
        filesystem, path = _filesystem(url)
        if any(sign in path for sign in "*?["):
            found = [str(one) for one in filesystem.glob(path)]
        elif filesystem.isfile(path):
            return [url]
        else:
            listed = filesystem.find(path, maxdepth=None if recursive else 1)
            found = [str(one) for one in listed if str(one).lower().endswith(tuple(suffixes))]
        urls = sorted(str(filesystem.unstrip_protocol(one)) for one in found)
    if not urls:
        raise InputError(
            f"there is nothing to read at {url}",
            wanted="a file, a pattern or a folder with files ending in " + ", ".join(suffixes),
        )
    return urls


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec.core

    filesystem, path = fsspec.core.url_to_fs(url)
    return filesystem, str(path)


def _is_local(filesystem: Any) -> bool:
    protocol = filesystem.protocol
    return any(one in _LOCAL for one in ([protocol] if isinstance(protocol, str) else protocol))


@contextmanager
def _explained(url: str, kind: type[MoshiPipeError]) -> Iterator[None]:
    """Turn what a file system raises, which may be anything, into an error of ours."""
    verb = "read" if kind is InputError else "write"
    failed = partial(kind, f"cannot {verb} {url}")
    try:
        yield
    except MoshiPipeError:
        raise
    except FileNotFoundError as error:
        raise failed(got="there is no such file or folder") from error
    except ImportError as error:
        scheme = url.partition("://")[0]
        raise failed(
            got=str(error),
            fix=f"pip install 'moshi-pipe[{scheme}]'" if scheme in ("s3", "gs") else None,
        ) from error
    except Exception as error:  # each service has its own exceptions
        raise failed(
            got=f"{type(error).__name__}: {error}",
            fix="check the address, and that this machine may go there",
        ) from error
