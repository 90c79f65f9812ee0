"""Whether a weight file holds the model that its config describes, by its header alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.layout import FLOAT_DTYPES, Layout
from moshi_pipe.models.safetensors_header import Header, read_header

if TYPE_CHECKING:
    from pathlib import Path

_LISTED: Final = 20  # names per kind in one error


def check_weights(path: Path, layout: Layout) -> Header:
    """Compare a weight file's header with the layout that the config predicts.

    Fused and split names are both accepted, as are the older names of codebooks.

    Returns:
        The file's header.

    Raises:
        CheckpointError: Lists all missing, unknown and misshapen tensors; or the file is damaged.
    """
    header = read_header(path)
    unknown, misshapen = [], []
    missing = set(layout.tensors)
    for name, entry in header.entries.items():
        parts = layout.resolve(name)
        if not parts:
            unknown.append(f"{name} {list(entry.spec.shape)}")
            continue
        missing.difference_update(parts)
        wanted = layout.stacked_spec(parts)
        fits = wanted.dtype == entry.spec.dtype or {wanted.dtype, entry.spec.dtype} <= set(
            FLOAT_DTYPES
        )
        if entry.spec.shape != wanted.shape or not fits:
            misshapen.append(
                f"{name}: {entry.spec.dtype} {list(entry.spec.shape)}, "
                f"config says {wanted.dtype} {list(wanted.shape)}"
            )
    problems = [
        *_problem("missing", sorted(missing)),
        *_problem("unknown", sorted(unknown)),
        *_problem("misshapen", sorted(misshapen)),
    ]
    if problems:
        predicted = sum(spec.num_elements for spec in layout.tensors.values())
        raise CheckpointError(
            f"{path} does not hold the model that its config describes",
            got=f"{len(header.entries)} tensors, {header.num_elements} elements\n"
            + "\n".join(problems),
            wanted=f"{len(layout.file_tensors())} tensors, {predicted} elements",
            fix="use the config.json that belongs to this file",
        )
    return header


def _problem(kind: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = [f"  and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return [f"{kind}, {len(names)}:", *(f"  {name}" for name in names[:_LISTED]), *more]
