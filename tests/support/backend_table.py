"""Which backend reads which file in which form, and how exactly.

One small random model is written in every format, by our converter and by the peers' own tools. A
cell is one backend that loads one file with one ``quant`` and steps through more than three
contexts of given tokens; it is held against torch in float32.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from moshi_pipe.errors import MoshiPipeError
from moshi_pipe.hooks import BackendOptions
from moshi_pipe.models.formats.contents import FORMATS
from moshi_pipe.models.formats.target import FILE_NAMES
from moshi_pipe.models.protocols import Controls, SpeechLM
from moshi_pipe.nn.convert import convert
from moshi_pipe.nn.load import read_lm
from moshi_pipe.plugins import load_plugins
from support.formats import MLX, open_lm_at, write_lm
from support.peer_files import write_gguf, write_mlx

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "torch": (),
    "rust": ("moshi_pipe_rust._native",),
    "mlx": ("moshi_pipe_mlx", "mlx.core"),
}
"""Modules that a backend needs."""

TOOLS: Final[Mapping[str, tuple[str, ...]]] = {
    "moshi_mlx": ("moshi_mlx", "mlx.core"),
    "gguf": ("gguf",),
}
"""Modules that a tool which writes files needs."""

QUANTS: Final = ("none", "int8", "int4")

FILES: Final = (
    *((name, "") for name in FORMATS),
    ("mlx", "moshi_mlx"),
    ("mlx-q8", "moshi_mlx"),
    ("mlx-q4", "moshi_mlx"),
    ("gguf", "gguf"),
)
"""Format and tool of every file; our own converter has no name."""

Cell = tuple[str, str, str, str]
"""Backend, format and tool of the file, ``quant``."""

CELLS: Final[tuple[Cell, ...]] = tuple(
    (backend, form, tool, quant) for form, tool in FILES for backend in NEEDS for quant in QUANTS
)

EXACT: Final = 1e-4
"""Logits of the same numbers differ by no more, relative to their norm."""

BOUNDS: Final = {"int8": 0.04, "int4": 0.25}
"""Logits of a quantized model differ from those of the model before by no more, likewise."""

AGREEING: Final = {0.04: 0.8, 0.25: 0.4}
"""By bound: more of the likeliest tokens of a quantized model, codes among them, are those of the
model before. Of tokens drawn at random, 3 % would be."""

EQUAL, REFUSED = "equal", "refused"

_NUM_STEPS: Final = 3 * MLX["context"] + 6
_PACKING: Final = {"mlx": (0, 0), "mlx-q8": (8, 64), "mlx-q4": (4, 32)}


def render(cells: Mapping[Cell, str]) -> str:
    """The table in Markdown: a row per file, a column per backend and ``quant``."""
    columns = [(backend, quant) for backend in NEEDS for quant in QUANTS]
    heads = [f"`{backend}` {quant}" for backend, quant in columns]
    lines = ["| file | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for form, tool in FILES:
        row = [cells[backend, form, tool, quant] for backend, quant in columns]
        lines.append(f"| {_label(form, tool)} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def read(page: str) -> dict[Cell, str]:
    """The cells of a rendered table in a page; empty without one."""
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in page.splitlines()]
    found = {row[0]: row[1:] for row in rows if len(row) == 1 + len(NEEDS) * len(QUANTS)}
    columns = [(backend, quant) for backend in NEEDS for quant in QUANTS]
    return {
        (backend, form, tool, quant): found[_label(form, tool)][place]
        for form, tool in FILES
        for place, (backend, quant) in enumerate(columns)
        if _label(form, tool) in found
    }


def _label(form: str, tool: str) -> str:
    return f"`{form}`" + (f" by {tool}" if tool else "")


def missing(names: Iterable[str]) -> list[str]:
    """Modules that are not installed."""
    return [name for name in names if not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its package
        return False


@dataclass(frozen=True, slots=True)
class Run:
    """What a model made of the given tokens.

    Attributes:
        logits: Of the text, float32 ``[steps, V]``.
        tokens: The likeliest text token and codes, int64 ``[steps, 1 + K]``.
    """

    logits: torch.Tensor
    tokens: torch.Tensor

    def distance(self, other: Run) -> float:
        """Of the logits, relative to the other's norm."""
        off = torch.dist(self.logits, other.logits) / torch.linalg.vector_norm(other.logits)
        return float(off)


class BackendTable:
    """Makes files and runs when they are asked for.

    Args:
        folder: An empty one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._plugins = load_plugins()
        self._runs: dict[Path, Run] = {}
        self._source = folder / "source"
        write_lm(self._source, MLX)
        self._original = self._same_numbers(self._source / "model.safetensors")

    def cell(self, backend: str, form: str, tool: str, quant: str) -> str:
        """What one backend makes of one file, in a word or two.

        Raises:
            AssertionError: It computes something else than it should.
            MoshiPipeError: It cannot load the file, and does not say what to do.
        """
        path = self._file(form, tool)
        try:
            run = self._run(backend, path, quant)
        except MoshiPipeError as error:
            if error.fix is None:  # a refusal has to say what to do
                raise
            return REFUSED
        stored = _rounding(form)
        if quant == "none":
            wanted = self._same_numbers(path)
            off = run.distance(wanted)
            assert off < EXACT, f"the same numbers give logits that are off by {off:.2g}"
            assert torch.equal(run.tokens, wanted.tokens), "the same numbers give other tokens"
        bound = max(BOUNDS.get(stored, 0.0), BOUNDS.get(quant, 0.0))
        if not bound:
            return EQUAL
        off = run.distance(self._original)
        assert EXACT < off < bound, f"logits are off by {off:.2g}"
        same = float((run.tokens == self._original.tokens).float().mean())
        assert same > AGREEING[bound], f"only {same:.0%} of the likeliest tokens are the same"
        return f"{EQUAL}, {bound:.0%}" if quant == "none" else f"{bound:.0%}"

    def _file(self, form: str, tool: str) -> Path:
        path = self._folder / (tool or "ours") / form / FILE_NAMES[form]
        if path.exists():
            return path
        path.parent.mkdir(parents=True)
        source = open_lm_at(self._source)
        if tool == "gguf":
            write_gguf(path, MLX, dict(read_lm(source, torch.float32)))
        elif tool == "moshi_mlx":
            write_mlx(path, MLX, self._source / "model.safetensors", *_PACKING[form])
        else:
            convert(source, path.parent, to=form)
        return path

    def _same_numbers(self, path: Path) -> Run:
        """The run of torch in float32, operation by operation, with the numbers of a file."""
        if path not in self._runs:
            self._runs[path] = self._run("torch", path, "none", numerics="reference")
        return self._runs[path]

    def _run(self, backend: str, path: Path, quant: str, numerics: str = "fast") -> Run:
        options = BackendOptions(
            backend, device="cpu", dtype="float32", quant=quant, numerics=numerics
        )
        checkpoint = open_lm_at(self._source, lm_file=str(path))
        return _step_through(self._plugins.open_lm(checkpoint, options, lambda done, total: None))


def _rounding(form: str) -> str:
    """Key of :data:`BOUNDS` for numbers that a format rounds."""
    if form.endswith("q4"):
        return "int4"
    return "int8" if form.endswith("q8") or form == "gguf" else "none"


def _step_through(lm: SpeechLM) -> Run:
    spec, state = lm.spec, lm.new_state(1)
    zeros, counts = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    controls = Controls(zeros, zeros, counts, counts)
    valid_B = torch.ones(1, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    logits, tokens = [], []
    for _ in range(_NUM_STEPS):
        codes = torch.randint(spec.cardinality, (1, spec.num_codebooks), generator=generator)
        text = torch.randint(spec.text_cardinality, (1, 1), generator=generator)
        step = lm.step(torch.cat([text, codes], dim=1), valid_B, controls, state)
        logits.append(step.extra["text_logits_BV"][0].float().clone())
        tokens.append(torch.cat([step.text_B, step.codes_BK[0]]).clone())
    return Run(torch.stack(logits), torch.stack(tokens))
