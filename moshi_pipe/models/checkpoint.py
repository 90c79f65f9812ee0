"""Checkpoints: a folder or hub repository with config, weights and tokenizer in a released format.

Opening one finds its files and reads its config; weights are read later, by the backend.

Source of the naming rules: kyutai-labs/moshi@e6a55d2 moshi/moshi/models/loaders.py:121-300.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import CheckpointError, closest
from moshi_pipe.models import hub
from moshi_pipe.models.layout import lm_layout, mimi_layout
from moshi_pipe.models.released import RELEASED_CONFIGS, RELEASED_SCHEME, RELEASES
from moshi_pipe.models.spec import MOSHI_7B_CONFIG, LMSpec, MimiSpec
from moshi_pipe.models.weight_check import check_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONFIG_NAME: Final = "config.json"
LM_NAME: Final = "model.safetensors"
LM_NAMES: Final = (LM_NAME, "model.q8.safetensors", "model.q4.safetensors", "model.q8.gguf")
"""How released repositories call the language model; some have no ``config.json`` to say so."""
MIMI_NAME: Final = "tokenizer-e351c8d8-checkpoint125.safetensors"
MIMI_NAMES: Final = (MIMI_NAME, "mimi-pytorch-e351c8d8@125.safetensors", "mimi.safetensors")
TOKENIZER_NAME: Final = "tokenizer_spm_32k_3.model"

LM: Final = "lm"
MIMI: Final = "mimi"
TOKENIZER: Final = "tokenizer"
ALL_PARTS: Final = (LM, MIMI, TOKENIZER)
"""What a graph may need of a checkpoint: only these files are looked for."""

MODEL_TYPES: Final = ("moshi", "hibiki", "stt")
EMBEDDED: Final = "embedded"
PACKAGED_MODELS: Final = (EMBEDDED, "nano")
"""Models in the package: the random one, and the small one that was trained."""

RANDOM_SIGNATURE: Final = "random"
"""``model_id.sig`` of a checkpoint whose weights were never trained."""

_LISTED: Final = 20  # files of a folder in one error


@dataclass
class ModelOptions:
    """Which model, and where its files come from. ``path`` goes before ``repo``.

    Attributes:
        name: How the model is called in messages.
        repo: Hub repository, ``owner/name``.
        revision: Branch, tag or commit of ``repo``.
        path: Folder with the model's files.
        config_file: Config to use instead of the model's; a path, ``hf://owner/repo/file``, or
            ``released://owner/repo`` for one that is known here.
        lm_file: Language model weights to use instead of those that the config names.
        mimi_file: Codec weights, likewise.
        tokenizer_file: Text tokenizer, likewise.
        lora_file: LoRA weights, likewise; the config must set ``lora``.
        overrides: Keys of ``config.json`` to replace or add.
        offline: Use only what the hub's cache holds.
        check_finite: Refuse weights that are NaN or infinite; costs one pass over each tensor.
    """

    name: str = "embedded"
    repo: str | None = None
    revision: str | None = None
    path: str | None = None
    config_file: str | None = None
    lm_file: str | None = None
    mimi_file: str | None = None
    tokenizer_file: str | None = None
    lora_file: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    offline: bool = False
    check_finite: bool = True

    @property
    def title(self) -> str:
        """Name, and the repository that it comes from."""
        from_hub = self.path is None and self.repo is not None
        return f"{self.name} ({self.repo})" if from_hub else self.name


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A released ``config.json``, read.

    Attributes:
        model_type: ``moshi``, ``hibiki`` or ``stt``.
        lm: The language model; None in a checkpoint that holds only a codec.
        num_codebooks: Codebooks of Mimi that the language model works with.
        lm_name: File of the language model's weights.
        mimi_name: File of the codec's weights.
        mimi_config_name: JSON file with the codec's config; None for the released codec.
        tokenizer_name: SentencePiece file.
        lora_name: LoRA weights, or None.
        lora_scaling: Weight of the LoRA product; None when the config sets no ``lora``.
        lm_gen_config: The model's own sampling settings (``temp``, ``temp_text``, ``top_k``,
            ``top_k_text``).
        stt_config: ``audio_silence_prefix_seconds`` and ``audio_delay_seconds`` of speech to text.
        model_id: Where the weights come from: ``sig``, ``epoch``.
        raw: The file as it was.
    """

    model_type: str = "moshi"
    lm: LMSpec | None = None
    num_codebooks: int = 8
    lm_name: str = LM_NAME
    mimi_name: str = MIMI_NAME
    mimi_config_name: str | None = None
    tokenizer_name: str = TOKENIZER_NAME
    lora_name: str | None = None
    lora_scaling: float | None = None
    lm_gen_config: Mapping[str, Any] = field(default_factory=dict)
    stt_config: Mapping[str, Any] = field(default_factory=dict)
    model_id: Mapping[str, Any] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_random(self) -> bool:
        """Whether the weights were never trained."""
        return self.model_id.get("sig") == RANDOM_SIGNATURE

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Take the keys that are not the language model's, and read the rest as its spec.

        Raises:
            CheckpointError: A key is unknown or missing, or asks for what is not supported.
        """
        values = dict(raw)
        model_type = str(values.pop("model_type", "moshi"))
        if model_type not in MODEL_TYPES:
            raise CheckpointError(
                "config.json: this kind of model does not run here",
                got=f"model_type {model_type}",
                wanted=", ".join(MODEL_TYPES),
            )
        fields: dict[str, Any] = {
            "model_type": model_type,
            "lm_name": values.pop("moshi_name", LM_NAME),
            "mimi_name": values.pop("mimi_name", MIMI_NAME),
            "mimi_config_name": values.pop("mimi_config_name", None),
            "tokenizer_name": values.pop("tokenizer_name", TOKENIZER_NAME),
            "lora_name": values.pop("lora_name", None),
            "lm_gen_config": values.pop("lm_gen_config", None) or {},
            "stt_config": values.pop("stt_config", None) or {},
            "model_id": values.pop("model_id", None) or {},
            "raw": dict(raw),
        }
        tts = values.pop("tts_config", None) or {}
        scaling = float(values.get("lora_scaling", 2.0))
        fields["lora_scaling"] = scaling if values.get("lora") else None
        if not values:
            return cls(**fields)
        lm = LMSpec.from_config(values)
        num_codebooks = max(lm.num_generated, lm.num_user)
        return cls(
            **fields,
            lm=lm,
            num_codebooks=num_codebooks // 2 if tts.get("multistream") else num_codebooks,
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The files of a model, found, and its config, read. No weights are in memory.

    Attributes:
        config: The model's config.
        mimi: The codec with the number of codebooks that the model uses; None without a codec.
        lm_weights: Safetensors of the language model; None where not asked for.
        mimi_weights: Safetensors of the codec; None where not asked for.
        tokenizer: SentencePiece model; None where not asked for.
        lora: LoRA weights, or None.
        where: Folder or repository, for messages.
        warnings: What a user should know.
        check_finite: Refuse weights that are NaN or infinite.
        mimi_config: JSON file with the codec's config; None for the released codec.
    """

    config: ModelConfig
    mimi: MimiSpec | None
    lm_weights: Path | None
    mimi_weights: Path | None
    tokenizer: Path | None
    lora: Path | None
    where: str
    warnings: tuple[str, ...] = ()
    check_finite: bool = True
    mimi_config: Path | None = None

    @property
    def is_random(self) -> bool:
        """Whether the weights were never trained: what it says means nothing."""
        return self.config.is_random

    def check(self) -> None:
        """Compare every file that was found with what the config predicts, reading headers alone.

        Raises:
            CheckpointError: Tensors are missing, unknown or misshapen (all listed together), a
                file is damaged or of another format.
        """
        if self.mimi_weights is not None and self.mimi is not None:
            check_weights(self.mimi_weights, mimi_layout(self.mimi))
        if self.lm_weights is not None and self.config.lm is not None:
            check_weights(self.lm_weights, lm_layout(self.config.lm))


def open_checkpoint(options: ModelOptions, *, parts: Sequence[str] = ALL_PARTS) -> Checkpoint:
    """Find a model's files, downloading those of a repository, and read its config.

    Args:
        options: Which model.
        parts: What is needed; files of other parts are neither looked for nor downloaded.

    Raises:
        CheckpointError: A file cannot be found or had, or the config cannot be used.
    """
    place = _Place(options)
    config, warnings = _read_config(place, options)
    if LM in parts and config.lm is None:
        raise CheckpointError(
            f"{place} holds no language model",
            got="a codec alone",
            wanted="config.json and the weights that it names",
            fix="choose another model, or a graph that needs only the codec",
        )
    lora = options.lora_file or config.lora_name
    if LM in parts and (lora is None) != (config.lora_scaling is None):
        raise CheckpointError(
            f"{place}: config.json and the LoRA file do not go together",
            got=f"lora={config.lora_scaling is not None}, LoRA file: {lora or 'none'}",
            wanted="both or neither",
            fix="set model.lora_file, or model.overrides.lora",
        )
    if lora is not None and config.lm is not None and config.lm.quantized and LM in parts:
        raise CheckpointError(
            f"{place}: LoRA cannot be added to int8 weights",
            fix="use the model's bfloat16 weights",
        )
    mimi = _mimi_spec(place, config) if MIMI in parts else None
    return Checkpoint(
        config=config,
        mimi=mimi,
        lm_weights=place.get(config.lm_name, options.lm_file) if LM in parts else None,
        mimi_weights=_mimi_weights(place, config, options) if MIMI in parts else None,
        tokenizer=(
            place.get(config.tokenizer_name, options.tokenizer_file) if TOKENIZER in parts else None
        ),
        lora=place.get(lora, options.lora_file) if lora and LM in parts else None,
        where=str(place),
        warnings=warnings,
        check_finite=options.check_finite,
        mimi_config=(
            place.get(config.mimi_config_name) if mimi and config.mimi_config_name else None
        ),
    )


def choose_release(options: ModelOptions, backend: str, quant: str) -> ModelOptions:
    """Take the repository that holds a named model as a backend wants it.

    What a user chose stays: a folder, a revision, a file of the language model, or a repository
    other than the named model's own.

    Args:
        options: Which model.
        backend: What computes the language model.
        quant: How its weights are stored.

    Returns:
        ``options``, or the same with another repository.
    """
    chosen = options.path or options.revision or options.config_file or options.lm_file
    release = RELEASES.get(options.repo or "", {}).get((backend, quant))
    if chosen or release is None or options.lora_file is not None:
        return options
    lm_file = None if release.lm_file is None else f"hf://{release.repo}/{release.lm_file}"
    return replace(options, repo=release.repo, lm_file=lm_file)


def read_specs(options: ModelOptions) -> tuple[ModelConfig, MimiSpec]:
    """Read a model's numbers without its weights, and without a network for the named models.

    Raises:
        CheckpointError: The config cannot be found, had or used.
    """
    place = _Place(options)
    known = RELEASED_CONFIGS.get(options.repo or "")
    if place.folder is None and known is not None and options.config_file is None:
        config = ModelConfig.from_json({**known, **options.overrides})
        return config, MimiSpec().with_codebooks(config.num_codebooks)
    config, _ = _read_config(place, options)
    return config, _mimi_spec(place, config)


class _Place:
    """Where the names of a model's files are looked up: a folder, or a repository."""

    def __init__(self, options: ModelOptions) -> None:
        self.folder: Path | None = None
        self.repo = options.repo
        self.revision = options.revision
        self.offline = options.offline
        if options.path is not None:
            self.folder = Path(options.path).expanduser()
        elif options.repo is None:
            self.folder = packaged_folder(options.name)
        if self.folder is not None and not self.folder.is_dir():
            is_file = self.folder.is_file()
            place = f"give the folder that it is in: {self.folder.absolute().parent}"
            raise CheckpointError(
                f"there is no model folder {self.folder.absolute()}",
                got="a file" if is_file else "nothing there",
                wanted="a folder with config.json and the files that it names",
                fix=place
                if is_file
                else "set model.path to the folder, or choose a model by name: model=moshiko",
            )

    def __str__(self) -> str:
        return str(self.folder) if self.folder is not None else str(self.repo)

    def get(self, name: str, override: str | None = None) -> Path:
        """Find one file. An override without ``hf://`` is a local path."""
        path = self._find(name, override)
        if path is not None and path.is_file():
            return path
        raise CheckpointError(
            f"{self} lacks the file '{override or name}'",
            got=_contents(self.folder),
            wanted=str(path or name),
            fix="correct the name in config.json, or set model.lm_file, model.mimi_file or "
            "model.tokenizer_file",
        )

    def has(self, name: str) -> bool:
        """Whether the folder holds a file of this name."""
        return self.folder is not None and (self.folder / name).is_file()

    def config(self) -> Path | None:
        """The config file; None when there surely is none."""
        if self.folder is not None:
            return self.folder / CONFIG_NAME if self.has(CONFIG_NAME) else None
        return self._download(str(self.repo), CONFIG_NAME, missing_ok=True)

    def _find(self, name: str, override: str | None) -> Path | None:
        wanted = override or name
        if wanted.startswith("hf://"):
            owner, _, rest = wanted.removeprefix("hf://").partition("/")
            repo, _, inner = rest.partition("/")
            # A revision names a commit of this model's repository, not of another one.
            full = f"{owner}/{repo}"
            revision = self.revision if full == self.repo else None
            return hub.download(full, inner, revision=revision, offline=self.offline)
        if wanted.startswith("file://"):
            return Path(wanted.removeprefix("file://"))
        if override is not None:
            return Path(override).expanduser()
        if self.folder is not None:
            return self.folder / name
        return self._download(str(self.repo), name)

    def _download(self, repo: str, name: str, *, missing_ok: bool = False) -> Path | None:
        return hub.download(
            repo, name, revision=self.revision, offline=self.offline, missing_ok=missing_ok
        )


def embedded_folder() -> Path:
    """Folder of the tiny model with random weights that comes with the package."""
    return packaged_folder(EMBEDDED)


def packaged_folder(name: str) -> Path:
    """Folder of a model that comes with the package; other names give the embedded one."""
    inside = name if name in PACKAGED_MODELS else EMBEDDED
    return Path(__file__).resolve().parent.parent / inside


def _read_config(place: _Place, options: ModelOptions) -> tuple[ModelConfig, tuple[str, ...]]:
    given = options.config_file or ""
    if given.startswith(RELEASED_SCHEME):
        return ModelConfig.from_json({**_released(given), **options.overrides}), ()
    path = place.get(CONFIG_NAME, given) if given else place.config()
    if path is not None:
        config = ModelConfig.from_json({**_read_json(path), **options.overrides})
        return config, ()
    there = next(filter(place.has, LM_NAMES), LM_NAME)
    lm_name = options.lm_file or there
    codec_only = place.folder is not None and not options.lm_file and not place.has(there)
    if codec_only and not options.mimi_file and not any(map(place.has, MIMI_NAMES)):
        raise CheckpointError(
            f"{place} holds no model",
            got=_contents(place.folder),
            wanted="config.json and the files that it names, or a codec alone: "
            + " or ".join(MIMI_NAMES),
        )
    if codec_only:
        named = "mimi_config.json" if place.has("mimi_config.json") else None
        return ModelConfig(mimi_config_name=named), ()
    warning = (
        f"{place} has no config.json: taking {lm_name} for a Moshi 7B of the first release, "
        "with 8 codebooks"
    )
    config = ModelConfig.from_json({**MOSHI_7B_CONFIG, **options.overrides})
    # The released 7B without a config.json is known; a folder's may be anything.
    known = place.folder is None and options.repo in RELEASED_CONFIGS
    return replace(config, lm_name=there), () if known else (warning,)


def _released(name: str) -> Mapping[str, Any]:
    """The config of a released model that is known without its file."""
    repo = name.removeprefix(RELEASED_SCHEME)
    if repo not in RELEASED_CONFIGS:
        raise CheckpointError(
            f"no config is known for {repo}", wanted=closest(repo, RELEASED_CONFIGS)
        )
    return RELEASED_CONFIGS[repo]


def _mimi_spec(place: _Place, config: ModelConfig) -> MimiSpec:
    spec = MimiSpec()
    if config.mimi_config_name is not None:
        spec = MimiSpec.from_config(_read_json(place.get(config.mimi_config_name)))
    if config.lm is None:
        return spec.with_codebooks(min(config.num_codebooks, spec.num_codebooks))
    return spec.with_codebooks(config.num_codebooks)


def _mimi_weights(place: _Place, config: ModelConfig, options: ModelOptions) -> Path:
    """The codec's file; a folder without config.json may name it in any of the released ways."""
    name = config.mimi_name
    if not config.raw and place.folder is not None and not place.has(name):
        name = next(filter(place.has, MIMI_NAMES), name)
    return place.get(name, options.mimi_file)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read the config {path}", got=str(error), wanted="a JSON file"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"cannot use the config {path}", wanted="a JSON table of keys")
    return value


def _contents(folder: Path | None) -> str | None:
    """What a folder holds, for messages."""
    if folder is None:
        return None
    names = sorted(entry.name for entry in folder.iterdir())
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"a folder with {', '.join(names[:_LISTED]) or 'nothing in it'}{more}"
