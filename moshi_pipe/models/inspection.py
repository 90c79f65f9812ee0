"""What a checkpoint is: a folder or a single file, described without loading it.

Damage and missing parts are part of the answer, not errors.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import CheckpointError, MoshiPipeError
from moshi_pipe.models.checkpoint import (
    CONFIG_NAME,
    LM_NAMES,
    MIMI_NAMES,
    ModelConfig,
    ModelOptions,
    read_specs,
)
from moshi_pipe.models.formats.names import naming_of
from moshi_pipe.models.layout import lm_layout, mimi_layout
from moshi_pipe.models.weight_check import is_gguf, match_weights, read_any_header
from moshi_pipe.units import format_bytes, format_count

if TYPE_CHECKING:
    from moshi_pipe.models.layout import Layout
    from moshi_pipe.models.safetensors_header import Header
    from moshi_pipe.models.spec import MimiSpec

BACKENDS: Final = ("torch", "mlx", "rust")
"""Backends that read every format of a language model; all but ``torch`` are plugins."""

_WEIGHTS: Final = (".safetensors", ".gguf")
_CODEC_NAMES: Final = ("encoder.model.", "decoder.model.", "quantizer.")
_LM_NAMES: Final = ("transformer.layers.", "text_emb.", "text_linear.")


@dataclass(slots=True)
class FileFinding:
    """What one file is.

    Attributes:
        name: In its folder.
        part: ``lm``, ``codec``, ``tokenizer``, ``lora``, ``config`` or ``unknown``.
        num_bytes: Its size; 0 where it is not there.
        format: Of weights: ``torch``, ``torch-q8``, ``mlx``, ``mlx-q8`` ..., ``candle``, ``gguf``;
            empty for others.
        quantization: How tensors are quantized; empty where that has no meaning.
        num_tensors: Arrays in the file.
        num_parameters: Elements of its tensors; each shared one counted once where that is known.
        dtypes: Arrays by type.
        problem: Why it cannot be used; None where it can, or where nothing is known of it.
    """

    name: str
    part: str
    num_bytes: int = 0
    format: str = ""
    quantization: str = ""
    num_tensors: int = 0
    num_parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    problem: str | None = None


@dataclass(slots=True)
class Inspection:
    """What a checkpoint is.

    Attributes:
        path: Folder or file, absolute.
        family: ``moshi``, ``hibiki``, ``stt``, ``tts``, ``codec``, ``lora`` or ``unknown``.
        random: Whether the weights were never trained.
        context: Frames that the language model sees; None without one, or where that is not known.
        codebooks: Codebooks that it hears and says, such as ``8 own, 8 heard``; empty if unknown.
        backends: Names of the backends that read it.
        files: Every file that it needs, and further weights beside them.
        problems: What is missing or damaged.
        notes: What else a user should know.
    """

    path: str
    family: str = "unknown"
    random: bool = False
    context: int | None = None
    codebooks: str = ""
    backends: tuple[str, ...] = ()
    files: list[FileFinding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return asdict(self)


def inspect_checkpoint(path: str | Path) -> Inspection:
    """Say what a folder or a weight file is.

    Args:
        path: A folder with a model's files, or one file. The config that lies beside a file is
            used where it fits.

    Raises:
        CheckpointError: There is nothing at this path.
    """
    place = Path(path).expanduser().absolute()
    if place.is_dir():
        return _inspect_folder(place)
    if place.is_file():
        return _inspect_file(place)
    raise CheckpointError(
        f"there is no file or folder {place}",
        got="nothing there",
        fix="give a model's folder or one of its files; `moshi-pipe check` takes model=NAME",
    )


def inspection_text(found: Inspection) -> str:
    """An inspection for people: what it is first, problems last."""
    random = ", random weights" if found.random else ""
    lines = [found.path, f"family      {found.family}{random}"]
    if found.context is not None:
        lines.append(f"context     {found.context} frames")
    if found.codebooks:
        lines.append(f"codebooks   {found.codebooks}")
    if found.backends:
        lines.append(f"backends    {', '.join(found.backends)}")
    for file in found.files:
        size = format_bytes(file.num_bytes) if file.num_bytes else "-"
        about = [file.format, f"quantized: {file.quantization}" if file.quantization else ""]
        if file.num_tensors:
            about.append(
                f"{file.num_tensors} tensors, {file.num_parameters / 1e6:,.1f} M parameters"
            )
            about.append(" ".join(f"{count} {dtype}" for dtype, count in file.dtypes.items()))
        lines.append(f"{file.part:<11} {size:>9}  {file.name}")
        lines += [f"{'':<11} {'':>9}    {text}" for text in about if text]
    lines += [f"note: {note}" for note in found.notes]
    lines += ["problem: " + problem.replace("\n", "\n  ") for problem in found.problems]
    count = format_count(len(found.problems), "problem")
    lines.append(count if found.problems else "nothing is missing or damaged")
    return "\n".join(lines) + "\n"


def _inspect_folder(folder: Path) -> Inspection:
    found = Inspection(str(folder))
    config, mimi = _specs(folder, found)
    named: list[tuple[str, str]] = []
    if (folder / CONFIG_NAME).is_file():
        found.files.append(_plain_file(folder / CONFIG_NAME, "config"))
    if config is not None:
        _describe(config, found)
        if config.lm is not None:
            named += [("lm", config.lm_name), ("tokenizer", config.tokenizer_name)]
        named.append(("codec", _codec_name(folder, config)))
        named += [("lora", config.lora_name)] if config.lora_name else []
        if config.mimi_config_name:
            named.append(("config", config.mimi_config_name))
    for part, name in named:
        if name.startswith("hf://"):
            found.notes.append(f"the {part} is elsewhere: {name}")
            continue
        path = Path(name.removeprefix("file://"))
        _add_file(folder / path, part, config, mimi, found)
    known = {file.name for file in found.files}
    for path in sorted(p for p in folder.iterdir() if p.suffix in _WEIGHTS and p.name not in known):
        if path.is_file():
            _add_file(path, "", config, mimi, found)
    if not found.files:
        found.problems.append("the folder holds no model")
    _choose_backends(found)
    return found


def _inspect_file(path: Path) -> Inspection:
    found = Inspection(str(path))
    beside: tuple[ModelConfig | None, MimiSpec | None] = (None, None)
    if (path.parent / CONFIG_NAME).is_file():
        quiet = Inspection(str(path))
        beside = _specs(path.parent, quiet)
    config = beside[0]
    _add_file(path, "", *beside, found)
    if found.files[0].part == "lm" and config is not None and found.files[0].problem is None:
        _describe(config, found)
    _choose_backends(found)
    return found


def _specs(folder: Path, found: Inspection) -> tuple[ModelConfig | None, MimiSpec | None]:
    """Read a folder's config; what is wrong with it becomes a problem."""
    has_config = (folder / CONFIG_NAME).is_file()
    if not has_config and any((folder / name).is_file() for name in LM_NAMES):
        found.notes.append("no config.json: taken for a Moshi 7B of the first release")
    try:
        return read_specs(ModelOptions(name="inspected", path=str(folder)))
    except MoshiPipeError as error:
        if has_config:
            found.problems.append(str(error))
        return None, None


def _describe(config: ModelConfig, found: Inspection) -> None:
    """What the config says of the model."""
    found.random = config.is_random
    found.family = config.model_type if config.lm is not None else "codec"
    if config.lm is not None:
        found.context = config.lm.temporal.context
        found.codebooks = f"{config.lm.num_generated} own, {config.lm.num_user} heard"


def _add_file(
    path: Path,
    part: str,
    config: ModelConfig | None,
    mimi: MimiSpec | None,
    found: Inspection,
) -> None:
    """Look at one file; weights are compared with the config where there is one."""
    if not path.is_file():
        found.files.append(FileFinding(path.name, part, problem="missing"))
        found.problems.append(f"{path.name}: the {part} is missing")
        return
    if part in ("tokenizer", "config"):
        found.files.append(_plain_file(path, part))
        return
    file = FileFinding(path.name, part or "unknown", path.stat().st_size)
    found.files.append(file)
    try:
        header = read_any_header(path)
        guessed = _part_of(header)
        file.part = part or guessed
        _count(file, header)
        layout = _layout_for(file.part, config, mimi)
        if file.part == "lm":
            _describe_lm(file, header, path, found)
        if layout is not None:
            contents = match_weights(path, layout)
            file.num_parameters = contents.num_parameters
            if file.part == "lm":
                file.format, file.quantization = contents.format, contents.quantization
    except CheckpointError as error:
        file.problem = str(error)
        found.problems.append(str(error))
    if found.family == "unknown" and file.part in ("codec", "lora"):
        found.family = file.part


def _count(file: FileFinding, header: Header) -> None:
    file.num_tensors = len(header.entries)
    file.num_parameters = header.num_elements
    kinds = Counter(entry.spec.dtype for entry in header.entries.values())
    file.dtypes = dict(kinds.most_common())


def _describe_lm(file: FileFinding, header: Header, path: Path, found: Inspection) -> None:
    """What the names and types of a language model's file tell without its config."""
    names = header.entries
    naming, kinds = naming_of(names), {entry.spec.dtype for entry in names.values()}
    file.format = "gguf" if is_gguf(path) else {"hub": "torch"}.get(naming, naming)
    if file.format == "torch" and "I8" in kinds:
        file.format = "torch-q8"
    file.quantization = "none"
    if kinds & {"I8", "U32", "Q8_0"}:
        file.quantization = "yes; the config is needed to say how"
    if found.codebooks:
        return
    streams = {int(k) for n in names for k in re.findall(r"^(?:emb|audio_embs)\.(\d+)\.", n)}
    heads = {
        int(k)
        for n in names
        for k in re.findall(r"^(?:linears|depformer(?:\.slices)?)\.(\d+)\.", n)
    }
    if streams:
        own = max(heads) + 1 if heads else 0
        found.codebooks = f"{own} own, {max(streams) + 1 - own} heard"
    found.family = "moshi" if heads else "stt"
    if any(".out1." in name or "cross_attention" in name for name in names):
        found.family = "tts"
    elif any(name.startswith("condition_provider.") for name in names):
        found.family = "hibiki"


def _part_of(header: Header) -> str:
    """What a weight file holds, by the names in it."""
    names = list(header.entries)
    if any(".lora_A." in name for name in names):
        return "lora"
    if any(name.startswith(_CODEC_NAMES) for name in names):
        return "codec"
    return "lm" if any(name.startswith(_LM_NAMES) for name in names) else "unknown"


def _layout_for(part: str, config: ModelConfig | None, mimi: MimiSpec | None) -> Layout | None:
    if part == "lm" and config is not None and config.lm is not None:
        return lm_layout(config.lm)
    return mimi_layout(mimi) if part == "codec" and mimi is not None else None


def _codec_name(folder: Path, config: ModelConfig) -> str:
    """The codec's file; a folder without config.json may name it in any of the released ways."""
    if config.raw or (folder / config.mimi_name).is_file():
        return config.mimi_name
    return next((name for name in MIMI_NAMES if (folder / name).is_file()), config.mimi_name)


def _choose_backends(found: Inspection) -> None:
    """Which backends read all language models that are whole; those of a codec are not told."""
    if any(f.part == "lm" and f.problem is None and f.format for f in found.files):
        found.backends = BACKENDS


def _plain_file(path: Path, part: str) -> FileFinding:
    return FileFinding(path.name, part, path.stat().st_size)
