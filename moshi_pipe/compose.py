"""The configuration of a run, composed by Hydra, then typed and checked.

Nothing here imports torch. Hydra and OmegaConf are imported when something is composed.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from moshi_pipe.config import (
    CUDA_KERNELS,
    DTYPES,
    KV_DTYPES,
    LATE,
    NUMERICS,
    OWN_ENGINE,
    ChosenNode,
    EngineOptions,
    RootSchema,
    RunConfig,
    SamplingOptions,
)
from moshi_pipe.config_errors import explain, explain_value, is_ours_to_explain
from moshi_pipe.config_files import choice_names, conf_dir
from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.graph.node import FIRST_FRAMES
from moshi_pipe.hooks import BackendOptions
from moshi_pipe.measures import check_measures
from moshi_pipe.models.checkpoint import PACKAGED_MODELS, ModelOptions, choose_release
from moshi_pipe.models.remote import RemoteOptions
from moshi_pipe.overrides import escape_interpolation, is_literal_key
from moshi_pipe.urls import is_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omegaconf import DictConfig

    from moshi_pipe.hooks import NodeRegistry

NO_OUTPUT_DIR: Final = "output_dir is empty"
WANTED_OUTPUT_DIR: Final = "name a folder, or `.` for the one where you stand"

_SCHEMAS: Final[Mapping[str, type]] = {
    "engine": EngineOptions,
    "sampling": SamplingOptions,
}


def store_schemas(registry: NodeRegistry) -> None:
    """Tell Hydra the types of our keys, and the nodes of plugins that have no file in ``conf/``.

    May be called any number of times in a process: what is stored is replaced by the same.

    Raises:
        MoshiPipeError: The options of a plugin's node cannot be loaded.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    store = ConfigStore.instance()
    store.store(name="schema", node=RootSchema, provider="moshi-pipe")
    for entry in registry:
        if entry.kind == "node" or entry.name in choice_names(entry.kind):
            continue
        if entry.kind == "engine":  # typed, as the key is that it fills
            engine = OmegaConf.structured(_engine_options(entry.name, registry))
            store.store(group="engine", name=entry.name, node=engine, provider=entry.owner)
            continue
        options = entry.load_options()
        typed = OmegaConf.create({} if options is None else OmegaConf.structured(options))
        values: Any = OmegaConf.to_container(typed)
        package = f"sink.{entry.name}" if entry.kind == "sink" else None
        store.store(
            group=entry.kind,
            name=entry.name,
            node={"node": entry.name, **values},
            package=package,
            provider=entry.owner,
        )
    for graph in registry.graphs():
        store.store(group="graph", name=graph.name, node=dict(graph.config), provider=graph.owner)


def compose(overrides: Sequence[str], registry: NodeRegistry) -> DictConfig:
    """Compose the configuration.

    Args:
        overrides: ``key=value`` words as :func:`moshi_pipe.overrides.prepare` gives them.
        registry: Sources and sinks that there are.

    Raises:
        ConfigError: A key, group or value is wrong; gives the closest.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    store_schemas(registry)
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="moshi-pipe"):
            return hydra_compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides) from error
    except ValueError as error:
        if not is_ours_to_explain(error):
            raise
        raise explain(error, overrides) from error


def resolve(cfg: DictConfig, registry: NodeRegistry) -> RunConfig:
    """Type and check a composed configuration. All mistakes are reported together.

    Args:
        cfg: What Hydra composed.
        registry: Sources and sinks that there are.

    Raises:
        ConfigError: A value is missing or illegal, a key is unknown, a node is not there.
    """
    from omegaconf import OmegaConf

    problems: list[str] = []
    missing = [key for key in sorted(OmegaConf.missing_keys(cfg)) if not key.startswith("hydra.")]
    problems += [f"{key} is not set: add {key}=VALUE" for key in missing]
    _check_names(cfg, problems)
    remote = _typed_remote(cfg, problems) if _is_remote(cfg) else None
    model = _typed_model(cfg, problems) if remote is None else ModelOptions(remote.name)
    source = _node("source", "source", cfg.source, registry, problems)
    sinks = [
        _node("sink", str(label), node, registry, problems)
        for label, node in (cfg.sink or {}).items()
    ]
    node_options = _node_options(cfg, registry, problems)
    own = _backend_options(cfg, registry, problems)
    if problems:
        _refuse(problems)
    values = _typed(cfg, registry)
    graph = values.graph or {}
    check_measures(graph, _present(source), [_present(sink) for sink in sinks])
    for name, options in node_options.items():
        graph["nodes"][name]["options"] = options
    return RunConfig(
        model=model if remote else choose_release(model, values.backend, values.quant),
        graph=graph,
        source=_present(source),
        sinks=tuple(_present(sink) for sink in sinks),
        engine=values.engine,
        sampling=values.sampling,
        backend=BackendOptions(
            backend=values.backend,
            device=values.device,
            dtype=values.dtype,
            kv_dtype=values.kv_dtype,
            numerics=values.numerics,
            cuda_graphs=values.cuda_graphs,
            cuda_kernels=values.cuda_kernels,
            context=values.context,
            codec_backend=values.codec_backend,
            quant=values.quant,
            quant_group=values.quant_group,
            quant_kernel=values.quant_kernel,
            own=own,
        ),
        seed=values.seed,
        output_dir=_output_dir(values.output_dir),
        resume=values.resume,
        lead_s=values.lead_s,
        tail_s=values.tail_s,
        max_tail_s=values.max_tail_s,
        first_frame=values.first_frame,
        conditions=values.conditions,
        composed=written_yaml(cfg),
        remote=remote,
        end_on_silence_s=values.end_on_silence_s,
        drop_until_pad_s=values.drop_until_pad_s,
        output_url=values.output_dir if is_url(values.output_dir) else None,
    )


def _output_dir(text: str) -> Path:
    """The folder of results; for those of an address, one of this process to write them in."""
    if is_url(text):
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"moshi-pipe-{os.getpid()}-{name}"
    return Path(os.path.abspath(os.path.expanduser(text)))


def load_written(path: Path, registry: NodeRegistry, overrides: Sequence[str] = ()) -> DictConfig:
    """Read the ``config.yaml`` of an earlier run, to run it again.

    Its results go into a folder ``repeat`` beside it, unless ``overrides`` names another.

    Args:
        path: The file.
        registry: Engines that there are.
        overrides: ``key=value`` words; paths are literal.

    Raises:
        ConfigError: The file cannot be read, or is no configuration of a run.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        cfg = OmegaConf.load(path)
    except (OSError, YAMLError) as error:
        raise ConfigError(f"cannot read {path.absolute()}", got=str(error)) from error
    wanted = {item.name for item in fields(RootSchema)}
    if not isinstance(cfg, DictConfig) or not wanted <= {str(key) for key in cfg}:
        raise ConfigError(
            f"{path.absolute()} is no configuration of a run",
            wanted="the config.yaml that a run writes into its output_dir",
        )
    cfg.output_dir = str(path.absolute().parent / "repeat")
    cfg.resume = False
    try:
        for word in overrides:
            key, _, text = word.lstrip("+").partition("=")
            if isinstance(OmegaConf.select(cfg, key), DictConfig):
                raise ConfigError(
                    f"a repeated run keeps its {key}",
                    got=word,
                    wanted=f"one of its keys, such as {key}.NAME=VALUE",
                )
            literal = is_literal_key(key)
            value = (
                escape_interpolation(text)
                if literal
                else OmegaConf.from_dotlist([f"value={text}"]).value
            )
            OmegaConf.update(cfg, key, value)
        typed = OmegaConf.merge(_root_schema(cfg, registry), cfg)
    except OmegaConfBaseException as error:
        raise explain(error, overrides) from error
    return cast("DictConfig", typed)


def _with_whole_paths(cfg: DictConfig) -> DictConfig:
    """A copy whose paths hold wherever the user stands; paths of sinks are names of results."""
    from omegaconf import OmegaConf

    copy = cfg.copy()
    for key in ("output_dir", "source.path", "model.path"):
        text = OmegaConf.select(copy, key)
        if isinstance(text, str) and text and not is_url(text):
            whole = os.path.abspath(os.path.expanduser(text))
            OmegaConf.update(copy, key, escape_interpolation(whole))
    return copy


def written_yaml(cfg: DictConfig) -> str:
    """The configuration as a run writes it beside its results, with whole paths."""
    return to_yaml(_with_whole_paths(cfg))


def to_yaml(cfg: DictConfig) -> str:
    """The configuration without Hydra's own part, as YAML."""
    from omegaconf import OmegaConf

    keys = [str(key) for key in cfg if key != "hydra"]
    return OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, keys))


def load_run(
    overrides: Sequence[str], registry: NodeRegistry, *, need_source: bool = True
) -> RunConfig:
    """Compose and resolve in one go, as commands and the Python API do.

    Args:
        overrides: ``key=value`` words.
        registry: Sources and sinks that there are.
        need_source: False fills the source in with silence, for what needs no audio.

    Raises:
        ConfigError: As :func:`compose` and :func:`resolve`.
    """
    words = list(overrides)
    if not need_source and not any(word.startswith("source=") for word in words):
        words.insert(0, "source=silence")
        words = [word for word in words if not word.startswith("source.")]
    return resolve(compose(words, registry), registry)


def _typed(cfg: DictConfig, registry: NodeRegistry) -> RootSchema:
    """The root as its dataclass.

    Raises:
        ConfigError: A key is unknown or a value has the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    keys = [str(key) for key in cfg if key != "hydra"]
    schema = _root_schema(cfg, registry)
    engine = cast("type", OmegaConf.get_type(schema, "engine"))
    unknown = _unknown_keys(cfg, keys, {**_SCHEMAS, "engine": engine})
    if unknown:
        _refuse(unknown)
    try:
        plain = OmegaConf.create(OmegaConf.to_container(OmegaConf.masked_copy(cfg, keys)))
        made = OmegaConf.to_object(OmegaConf.merge(schema, plain))
    except OmegaConfBaseException as error:
        raise explain(error) from error
    if not isinstance(made, RootSchema):
        raise ConfigError("the configuration is not a mapping of keys")
    return made


def _root_schema(cfg: DictConfig, registry: NodeRegistry) -> DictConfig:
    """Types of all keys, those of the chosen engine's among them."""
    from omegaconf import OmegaConf

    schema = OmegaConf.structured(RootSchema)
    name = OmegaConf.select(cfg, "engine.node")
    if name not in (None, OWN_ENGINE):
        schema.engine = OmegaConf.structured(_engine_options(str(name), registry))
    return cast("DictConfig", schema)


def _engine_options(name: str, registry: NodeRegistry) -> type[EngineOptions]:
    """Options of a plugin's engine.

    Raises:
        ConfigError: There is none of this name, or its options lack those that all engines have.
    """
    entry = registry.get("engine", name)
    options = entry.load_options()
    if options is None or not issubclass(options, EngineOptions):
        raise ConfigError(
            f"the options of engine '{name}' of plugin {entry.owner} cannot be used",
            got=repr(options),
            wanted="a subclass of moshi_pipe.config.EngineOptions",
        )
    return options


def _is_remote(cfg: DictConfig) -> bool:
    """Whether the model runs elsewhere."""
    return "url" in [str(key) for key in cfg.model or {}]  # also where it is not set


def _typed_remote(cfg: DictConfig, problems: list[str]) -> RemoteOptions:
    """Where a remote model is; what is wrong is added to ``problems``."""
    from omegaconf import OmegaConf

    before = len(problems)
    given = {str(key): cfg.model._get_node(key) for key in cfg.model}
    made = _typed_options("model", given, RemoteOptions, problems)
    if made is None or len(problems) > before:
        return RemoteOptions()
    if not OmegaConf.is_missing(cfg.model, "url"):
        problems += made.problems()
    return cast("RemoteOptions", made)


def _typed_model(cfg: DictConfig, problems: list[str]) -> ModelOptions:
    """The options of the model; what is wrong is added to ``problems``."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = [item.name for item in fields(ModelOptions)]
    typed = OmegaConf.structured(ModelOptions)
    for key in cfg.model or {}:
        if key not in known:
            problems.append(f"there is no key 'model.{key}': {closest(str(key), known)}")
        elif not OmegaConf.is_missing(cfg.model, key):
            try:
                typed = OmegaConf.merge(typed, {key: cfg.model._get_node(key)})
            except OmegaConfBaseException as error:
                problems.append(explain_value(f"model.{key}", error))
    model = OmegaConf.to_object(typed)
    if not isinstance(model, ModelOptions):
        raise ConfigError("model is not a mapping of keys")
    given = (
        model.path is not None or model.repo is not None or OmegaConf.is_missing(cfg.model, "path")
    )
    if not given and model.name not in PACKAGED_MODELS:
        problems.append(
            f"model '{model.name}' has no files: add model.path=FOLDER or model.repo=REPO"
        )
    return model


def _unknown_keys(cfg: DictConfig, keys: Sequence[str], schemas: Mapping[str, type]) -> list[str]:
    """Keys that ``+key=value`` added where the keys are fixed."""
    known = {"": [item.name for item in fields(RootSchema)]}
    for group, schema in schemas.items():
        known[group] = [item.name for item in fields(schema)]
    found = [("", key) for key in keys]
    found += [(group, str(key)) for group in schemas for key in cfg[group]]
    return [
        f"there is no key '{f'{group}.{key}' if group else key}': {closest(key, known[group])}"
        for group, key in found
        if key not in known[group]
    ]


def _check_names(cfg: DictConfig, problems: list[str]) -> None:
    """Values out of a short list, and numbers that have bounds."""
    lists = {
        "numerics": (cfg.numerics, NUMERICS),
        "cuda_kernels": (cfg.cuda_kernels, CUDA_KERNELS),
        "dtype": (cfg.dtype, DTYPES),
        "kv_dtype": (cfg.kv_dtype, KV_DTYPES),
        "first_frame": (cfg.first_frame, FIRST_FRAMES),
        "engine.late": (cfg.engine.late, LATE),
    }
    for key, (value, known) in lists.items():
        if value is not None and value not in known:
            problems.append(f"{key} cannot be '{value}': {closest(value, known)}")
    if cfg.kv_dtype == "int8" and cfg.numerics == "reference":
        problems.append("kv_dtype cannot be 'int8' with numerics=reference, which rounds nothing")
    if cfg.cuda_kernels == "triton" and cfg.numerics == "reference":
        problems.append("cuda_kernels cannot be 'triton' with numerics=reference: sums differ")
    least = {
        "seed": (cfg.seed, 0),
        "context": (cfg.context, 1),
        "lead_s": (cfg.lead_s, 0),
        "tail_s": (cfg.tail_s, 0),
        "max_tail_s": (cfg.max_tail_s, 0),
        "end_on_silence_s": (cfg.end_on_silence_s, 0.08),
        "drop_until_pad_s": (cfg.drop_until_pad_s, 0.08),
        "engine.slots": (cfg.engine.slots, 1),
        "engine.threads": (cfg.engine.threads, 1),
        "engine.inbox_frames": (cfg.engine.inbox_frames, 1),
        "engine.outbox_frames": (cfg.engine.outbox_frames, 1),
        "engine.max_lag_ms": (cfg.engine.max_lag_ms, 1),
        "engine.budget_ms": (cfg.engine.budget_ms, 1),
        "engine.min_interval_ms": (cfg.engine.min_interval_ms, 0),
        "engine.admit_ms": (cfg.engine.admit_ms, 1),
        "engine.restarts": (cfg.engine.restarts, 0),
        "sampling.temperature": (cfg.sampling.temperature, 0),
        "sampling.text_temperature": (cfg.sampling.text_temperature, 0),
        "sampling.top_k": (cfg.sampling.top_k, 0),
        "sampling.text_top_k": (cfg.sampling.text_top_k, 0),
    }
    for key, (number, bound) in least.items():
        if number is not None and not number >= bound:  # also refuses not-a-number
            problems.append(f"{key} cannot be {number}: at least {bound}")
    if not str(cfg.output_dir).strip():
        problems.append(f"{NO_OUTPUT_DIR}: {WANTED_OUTPUT_DIR}")
    if cfg.seed is not None and cfg.seed >= 2**63:
        problems.append(f"seed cannot be {cfg.seed}: at most 2^63 - 1")
    for key in ("lead_s", "tail_s", "max_tail_s", "end_on_silence_s", "drop_until_pad_s"):
        if cfg[key] is not None and math.isinf(cfg[key]) and cfg[key] > 0:
            problems.append(f"{key} cannot be {cfg[key]}: a finite number")
    guidance, penalty = cfg.sampling.guidance, cfg.sampling.repetition_penalty
    if guidance is not None and not math.isfinite(guidance):
        problems.append(f"sampling.guidance cannot be {guidance}: a finite number")
    if penalty is not None and not 0 < penalty < math.inf:
        problems.append(f"sampling.repetition_penalty cannot be {penalty}: above 0")


def _node(
    kind: str, label: str, node: Any, registry: NodeRegistry, problems: list[str]
) -> ChosenNode | None:
    """Type the options of one node; what is wrong is added to ``problems``."""
    from omegaconf import DictConfig, OmegaConf

    where = kind if kind == "source" else f"{kind}.{label}"
    if not isinstance(node, DictConfig) or OmegaConf.is_missing(node, "node") or "node" not in node:
        names = ", ".join(registry.names(kind))
        problems.append(f"{where} names no {kind}: choose {kind}=NAME, one of {names}")
        return None
    try:
        entry = registry.get(kind, str(node.node))
    except ConfigError as error:
        problems.append(f"{where}: {error.what}, {error.wanted}")
        return None
    options = entry.load_options()
    given = {str(key): _value(node, str(key)) for key in node if key != "node"}
    if options is None:
        problems += [f"{where}.{key} is unknown: this {kind} has no options" for key in given]
        return ChosenNode(label, entry, None)
    return ChosenNode(label, entry, _typed_options(where, given, options, problems))


def _value(node: DictConfig, key: str) -> Any:
    """The node of a key; of one that stands for a group, such as ``${server}``, that group."""
    from omegaconf import DictConfig

    value: Any = node._get_node(key)
    meant = value._maybe_dereference_node()
    return meant if isinstance(meant, DictConfig) else value


def _typed_options(
    where: str, given: Mapping[str, Any], options: type, problems: list[str]
) -> Any | None:
    """An instance of a dataclass of options; None when something is wrong with the values.

    Args:
        where: The key of the configuration that holds them.
        given: What is configured.
        options: The dataclass.
        problems: What is wrong is added here.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = [item.name for item in fields(options)]
    typed = OmegaConf.structured(options)
    for key, value in given.items():
        if key not in known:
            problems.append(f"{where}.{key} is unknown: {closest(key, known)}")
            continue
        if OmegaConf.is_config(value) or not value._is_missing():
            try:
                typed = OmegaConf.merge(typed, {key: value})
            except OmegaConfBaseException as error:
                problems.append(explain_value(f"{where}.{key}", error))
    unset = [name for name in OmegaConf.missing_keys(typed) if name not in given]
    problems += [f"{where}.{name} is not set: add {where}.{name}=VALUE" for name in unset]
    if OmegaConf.missing_keys(typed) or problems:
        return None
    return OmegaConf.to_object(typed)


def _node_options(cfg: DictConfig, registry: NodeRegistry, problems: list[str]) -> dict[str, Any]:
    """Typed options of the graph's nodes, by node, where their kind has some.

    What is wrong is added to ``problems``; the graph itself is checked later.
    """
    from omegaconf import DictConfig

    made: dict[str, Any] = {}
    nodes = cfg.graph.get("nodes") if isinstance(cfg.graph, DictConfig) else None
    if not isinstance(nodes, DictConfig):
        return made
    kinds = registry.names("node")
    for key, node in nodes.items():
        name = str(key)
        kind = str(node.get("kind")) if isinstance(node, DictConfig) else ""
        if kind not in kinds:
            continue
        where = f"graph.nodes.{name}.options"
        given = _keys_of(node.get("options"), where, problems)
        options = registry.get("node", kind).load_options()
        if options is None:
            problems += [f"{where}.{key} is unknown: kind '{kind}' has no options" for key in given]
        else:
            made[name] = _typed_options(where, given, options, problems)
    return made


def _backend_options(
    cfg: DictConfig, registry: NodeRegistry, problems: list[str]
) -> dict[str, Any]:
    """Typed options of the backends that are used or configured, by backend."""
    entries = {entry.name: entry for entry in registry.backends()}
    given = _keys_of(cfg.backend_options, "backend_options", problems)
    for name in given:
        if name not in entries:
            problems.append(f"backend_options.{name} is unknown: {closest(name, entries)}")
    made: dict[str, Any] = {}
    for name, entry in entries.items():
        if name in given or name in (cfg.backend, cfg.codec_backend):
            where = f"backend_options.{name}"
            values = _keys_of(given.get(name), where, problems)
            made[name] = _typed_options(where, values, entry.load_options(), problems)
    return made


def _keys_of(node: Any, where: str, problems: list[str]) -> dict[str, Any]:
    """Keys of a mapping with their nodes; a mapping that is none is a problem."""
    from omegaconf import DictConfig

    if node is None:
        return {}
    if not isinstance(node, DictConfig):
        problems.append(f"{where} is no mapping: write {{KEY: VALUE}}")
        return {}
    return {str(key): node._get_node(key) for key in node}


def _present(node: ChosenNode | None) -> ChosenNode:
    """A node that was found, or its problem would have been reported."""
    if node is None:
        raise ConfigError("a node of the configuration is not there")
    return node


def _refuse(problems: Sequence[str]) -> None:
    """Raise one error for all problems."""
    if len(problems) == 1:
        what, _, help_text = problems[0].partition(": ")
        if help_text.startswith(("add ", "choose ")):
            raise ConfigError(what, fix=help_text)
        raise ConfigError(what, wanted=help_text or None)
    raise ConfigError(f"the configuration has {len(problems)} mistakes", got="\n".join(problems))
