"""Finding, loading and explaining plugins.

A manager is made by :func:`load_plugins`, never at import; tests make their own. A plugin that
cannot be loaded is left out with its reason, and the rest works.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from inspect import isclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pluggy

from moshi_pipe.builtin import BuiltinNodes, TorchBackend
from moshi_pipe.config_files import choice_names
from moshi_pipe.errors import BackendError, ConfigError, MoshiPipeError, closest
from moshi_pipe.hooks import API_VERSION, PROJECT, Command, Hooks, NodeRegistry
from moshi_pipe.registry import BUILT_IN, plugin_failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from moshi_pipe.hooks import BackendOptions, Progress
    from moshi_pipe.models.checkpoint import Checkpoint
    from moshi_pipe.models.protocols import Codec, Quantizer, SpeechLM

PLUGINS_VARIABLE: Final = "MOSHI_PIPE_PLUGINS"
"""Environment variable: modules to load as plugins, and ``no:NAME`` to leave one out, by commas."""

DIRS_VARIABLE: Final = "MOSHI_PIPE_PLUGINS_DIR"
"""Environment variable: folders whose ``.py`` files are plugins, parted as in ``PATH``."""


_TORCH: Final = "torch"
"""Our own plugin of models, and its backend."""

_OUR_QUANTS: Final = ("none", "int8", "int4")
_COMPANIONS: Final = ("mlx", "rust")
"""Backends that lie in folders of the same names under ``plugins/`` and are installed apart."""

_COMPLETION: Final = ("COMP_LINE", "COMP_POINT")
_CHOICE: Final = re.compile(r"(?<=\s)(-p\s+no:\S+|--plugins-dir[=\s]\s*\S+)\s+")


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One plugin, for ``moshi-pipe plugins``.

    Attributes:
        name: Name of its entry point, module or file; those of
            :data:`~moshi_pipe.registry.BUILT_IN` are the package's.
        origin: Distribution and version, ``built in``, or where else it comes from.
        offers: What it registered: ``source file``, ``hook open_lm`` ...
        error: Why it was left out; None when it works.
        fix: What to do about that.
        blocked: Whether it was left out because a user said so.
        distribution: Name of its installed distribution, if it has one.
        version: Of the distribution.
        load_ms: How long its import and registration took.
    """

    name: str
    origin: str
    offers: tuple[str, ...] = ()
    error: str | None = None
    fix: str | None = None
    blocked: bool = False
    distribution: str | None = None
    version: str | None = None
    load_ms: float = 0.0

    @property
    def warning(self) -> str | None:
        """One sentence for a person who runs something else; None when there is nothing to say."""
        if self.error is None or self.blocked:
            return None
        reason = " ".join(self.error.split())
        return f"plugin {self.name} ({self.origin}) was left out: {reason}" + (
            f"; do: {self.fix}" if self.fix else ""
        )


@dataclass(slots=True)
class Plugins:
    """Everything that plugins gave.

    Attributes:
        manager: Calls the hooks: ``plugins.manager.hook.open_codec(...)``.
        nodes: Sources, sinks, batched nodes, graphs and options of backends by name.
        commands: Foreign commands by name.
        infos: Every plugin found, those that failed included.
        opened_by: Plugin that opened each model: ``codec``, ``lm``.
    """

    manager: pluggy.PluginManager
    nodes: NodeRegistry
    commands: dict[str, Command] = field(default_factory=dict)
    infos: list[PluginInfo] = field(default_factory=list)
    opened_by: dict[str, str] = field(default_factory=dict)

    def open_codec(
        self, checkpoint: Checkpoint, options: BackendOptions, progress: Progress
    ) -> Codec:
        """Open a codec with the backend that the options choose for it.

        Raises:
            BackendError: No plugin has this backend, or it cannot run here.
            CheckpointError: The weights cannot be used.
        """
        options = replace(options, backend=options.codec_backend or options.backend)
        given = {"checkpoint": checkpoint, "options": options, "progress": progress}
        codec: Codec | None = self._open("codec", f"backend '{options.backend}'", given)
        if codec is None:
            raise self._no_backend("a codec", options)
        return codec

    def open_lm(
        self, checkpoint: Checkpoint, options: BackendOptions, progress: Progress
    ) -> SpeechLM:
        """Open a language model with the backend that the options choose.

        Raises:
            BackendError: No plugin has this backend, or it cannot run here.
            CheckpointError: The weights cannot be used.
        """
        given = {"checkpoint": checkpoint, "options": options, "progress": progress}
        lm: SpeechLM | None = self._open("lm", f"backend '{options.backend}'", given)
        if lm is None:
            raise self._no_backend("a language model", options)
        return lm

    def open_quantizer(self, options: BackendOptions, device: str) -> Quantizer:
        """Open the quantizer that ``options.quant`` names.

        Raises:
            BackendError: No plugin has it, or it cannot be used here.
        """
        given = {"options": options, "device": device}
        quantizer: Quantizer | None = self._open("quantizer", f"quant '{options.quant}'", given)
        if quantizer is None:
            raise self._no_quantizer(options)
        return quantizer

    def refuse_absent(self, options: BackendOptions, *, codec: bool, lm: bool) -> None:
        """Refuse a backend or a ``quant`` that cannot be there, before any file is looked for.

        Only names that no plugin besides our own could have are refused: hooks are not called.

        Args:
            options: What was chosen.
            codec: Whether a codec is needed.
            lm: Whether a language model is needed.

        Raises:
            BackendError: Nothing that is installed can have it.
        """
        of_codec = replace(options, backend=options.codec_backend or options.backend)
        if codec and of_codec.backend != _TORCH and self._only_ours("codec"):
            raise self._no_backend("a codec", of_codec)
        if not lm:
            return
        if options.backend != _TORCH:
            if self._only_ours("lm"):
                raise self._no_backend("a language model", options)
        elif options.quant not in _OUR_QUANTS and self._only_ours("quantizer"):
            raise self._no_quantizer(options)

    def _only_ours(self, part: str) -> bool:
        hook = getattr(self.manager.hook, f"open_{part}")
        return all(plugin.plugin_name == _TORCH for plugin in hook.get_hookimpls())

    def warnings(self) -> list[str]:
        """A sentence per plugin that was left out, unless a user said so."""
        return [info.warning for info in self.infos if info.warning is not None]

    def blame(self, error: ConfigError) -> ConfigError:
        """Add to an error about a name that is not there which plugins were left out, if any."""
        warnings = self.warnings()
        if not warnings or not error.what.startswith("there is no"):
            return error
        fix = "\n".join([*([error.fix] if error.fix else []), *warnings])
        return type(error)(error.what, got=error.got, wanted=error.wanted, fix=fix)

    def _no_backend(self, what: str, options: BackendOptions) -> BackendError:
        companion = options.backend in _COMPANIONS
        install = f"pip install ./plugins/{options.backend}, in a clone of moshi-pipe"
        listed = "see `moshi-pipe plugins`; backend=torch comes with the package"
        return BackendError(
            f"no plugin opens {what} with backend '{options.backend}'",
            got="; ".join(self.warnings()) or None,
            wanted=None if companion else closest(options.backend, (_TORCH, *_COMPANIONS)),
            fix=install if companion else listed,
        )

    def _no_quantizer(self, options: BackendOptions) -> BackendError:
        return BackendError(
            f"no plugin quantizes to '{options.quant}'",
            got="; ".join(self.warnings()) or None,
            wanted=closest(options.quant, _OUR_QUANTS),
            fix="more forms: pip install ./plugins/quantizers, in a clone of moshi-pipe",
        )

    def _open(self, part: str, about: str, given: Mapping[str, Any]) -> Any:
        """Ask the plugins for a part, the last one first, until one answers; None when none does.

        pluggy would do the same, and not say whose hook raised.
        """
        hook = getattr(self.manager.hook, f"open_{part}")
        for plugin in reversed(hook.get_hookimpls()):
            try:
                opened = plugin.function(*(given[name] for name in plugin.argnames))
            except MoshiPipeError:
                raise
            except Exception as error:
                if plugin.plugin_name in BUILT_IN:
                    raise
                raise plugin_failed(about, plugin.plugin_name, f"open_{part}", error) from error
            if opened is not None:
                self.opened_by[part] = plugin.plugin_name
                return opened
        return None


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A plugin that was found and not yet loaded."""

    name: str
    origin: str
    load: Callable[[], Any]
    distribution: str | None = None
    version: str | None = None


def load_plugins(
    extra: Iterable[tuple[str, Any]] = (), *, installed: bool = True, reserved: Sequence[str] = ()
) -> Plugins:
    """Make a manager with the package's own plugins, those that are found and ``extra``.

    Found are the entry points of installed distributions, the modules that the environment
    variable :data:`PLUGINS_VARIABLE` names, and the files in the folders of :data:`DIRS_VARIABLE`.

    Args:
        extra: Further plugins as (name, module or object); for tests and the Python API.
        installed: Whether to look for entry points and at the environment.
        reserved: Commands that plugins may not take.

    Returns:
        The manager and what was registered. Nothing is raised for a broken plugin: its reason is
        in ``infos``.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    plugins = Plugins(manager, NodeRegistry())
    environ = os.environ if installed else {}
    blocked, modules = _asked_for(environ.get(PLUGINS_VARIABLE, ""))
    found = [
        _Candidate("nodes", "built in", BuiltinNodes),
        _Candidate("torch", "built in", partial(TorchBackend, plugins.open_quantizer)),
    ]
    found += _installed() if installed else []
    found += [_module(reference) for reference in modules]
    for folder in environ.get(DIRS_VARIABLE, "").split(os.pathsep):
        found += _dropped(Path(folder).expanduser()) if folder else []
    found += [_Candidate(name, "given", partial(_given, plugin)) for name, plugin in extra]
    for candidate in found:
        plugins.infos.append(_add(plugins, candidate, blocked, reserved))
    names = {info.name for info in plugins.infos}
    for name in sorted(blocked - names):
        reason = f"no plugin is called '{name}': {closest(name, names)}"
        fix = f"take no:{name} out of -p and {PLUGINS_VARIABLE}"
        plugins.infos.append(PluginInfo(name, f"no:{name}", error=reason, fix=fix))
    return plugins


@contextmanager
def chosen_plugins(words: Sequence[str]) -> Iterator[list[str]]:
    """Let ``-p no:NAME`` and ``--plugins-dir DIR`` hold while the block runs.

    They are put into the environment, so that processes which the run starts follow them too.

    Args:
        words: Of a command line; while a shell completes one, that line counts as well.

    Yields:
        The other words.

    Raises:
        ConfigError: ``--plugins-dir`` names no folder.
    """
    rest, blocked, folders = _split_choice(words)
    names = (PLUGINS_VARIABLE, DIRS_VARIABLE, *_COMPLETION)
    before = {name: os.environ.get(name) for name in names}
    line = before["COMP_LINE"]
    if line is not None:  # the line that is completed chooses plugins too; Hydra would refuse them
        _, more_blocked, more_folders = _split_choice(_line_words(line))
        blocked, folders = blocked + more_blocked, folders + more_folders
        os.environ["COMP_LINE"] = line = _CHOICE.sub("", line)
        os.environ["COMP_POINT"] = str(len(line))
    if blocked:
        given = before[PLUGINS_VARIABLE]
        os.environ[PLUGINS_VARIABLE] = ",".join([*([given] if given else []), *blocked])
    if folders:
        given = before[DIRS_VARIABLE]
        whole = [str(Path(folder).expanduser().absolute()) for folder in folders]
        os.environ[DIRS_VARIABLE] = os.pathsep.join([*([given] if given else []), *whole])
    try:
        yield rest
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _split_choice(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Part words into others, ``no:NAME`` and folders of plugins."""
    rest: list[str] = []
    blocked: list[str] = []
    folders: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "-p" and left and left[0].startswith("no:"):
            blocked.append(left.pop(0))
        elif word == "--plugins-dir" and left:
            folders.append(left.pop(0))
        elif word.startswith("--plugins-dir"):
            folder = word.partition("=")[2]
            if not folder:
                raise ConfigError("--plugins-dir names no folder", wanted="--plugins-dir FOLDER")
            folders.append(folder)
        else:
            rest.append(word)
    return rest, blocked, folders


def _line_words(line: str) -> list[str]:
    """Words of a line that may not be finished."""
    try:
        return shlex.split(line)
    except ValueError:  # a quote is still open
        return line.split()


def _asked_for(text: str) -> tuple[set[str], list[str]]:
    """Names to leave out, and modules to load, of :data:`PLUGINS_VARIABLE`."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    blocked = {word.removeprefix("no:") for word in words if word.startswith("no:")}
    return blocked, [word for word in dict.fromkeys(words) if not word.startswith("no:")]


def _installed() -> Iterator[_Candidate]:
    """Entry points of the group, in an order that does not depend on the file system."""
    points = entry_points(group=PROJECT)
    for point in sorted(points, key=lambda p: (p.name, p.dist.name if p.dist else "")):
        dist = point.dist
        if dist is None:
            yield _Candidate(point.name, point.value, point.load)
        else:
            origin = f"{dist.name} {dist.version}"
            yield _Candidate(point.name, origin, point.load, dist.name, dist.version)


def _given(plugin: Any) -> Any:
    """A plugin that needs no loading."""
    return plugin


def _module(reference: str) -> _Candidate:
    """A module that the environment names, or ``module:object``."""
    point = EntryPoint(reference.partition(":")[0], reference, PROJECT)
    return _Candidate(point.name, PLUGINS_VARIABLE, point.load)


def _dropped(folder: Path) -> Iterator[_Candidate]:
    """Every ``.py`` file of a folder; those that begin with ``_`` are parts of others."""
    if not folder.is_dir():

        def refuse() -> Any:
            raise ConfigError(
                "the folder of plugins is not there", got=str(folder), fix="check --plugins-dir"
            )

        yield _Candidate(str(folder), str(folder), refuse)
        return
    for path in sorted(folder.glob("*.py")):
        if not path.name.startswith("_"):
            yield _Candidate(path.stem, str(path), partial(_import_file, path))


def _import_file(path: Path) -> Any:
    """Import a file under a name that no installed package can have."""
    name = f"moshi_pipe_dropped_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError("this file is no Python module", got=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that "module:Class" finds it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _add(
    plugins: Plugins, candidate: _Candidate, blocked: set[str], reserved: Sequence[str]
) -> PluginInfo:
    """Register one plugin and take what it offers; a failure leaves no trace but the reason."""
    name = candidate.name
    info = PluginInfo(
        name,
        candidate.origin,
        distribution=candidate.distribution,
        version=candidate.version,
    )
    if name in blocked:
        return replace(info, error=f"left out by no:{name}", blocked=True)
    taken = next((other for other in plugins.infos if other.name == name), None)
    if taken is not None:
        return replace(
            info,
            error=f"two plugins are called '{name}': {taken.origin} has the name, "
            f"{candidate.origin} wants it too",
            fix="uninstall one of the two, or rename one: its entry point, or its file",
        )
    start = time.perf_counter()
    try:
        offers = _register(plugins, name, candidate, reserved)
    except (Exception, SystemExit) as error:  # foreign code: whatever it raises is its reason
        if plugins.manager.has_plugin(name):
            plugins.manager.unregister(name=name)
        reason, fix = _explain(error, candidate)
        return replace(info, error=reason, fix=fix)
    return replace(info, offers=offers, load_ms=(time.perf_counter() - start) * 1000)


def _register(
    plugins: Plugins, name: str, candidate: _Candidate, reserved: Sequence[str]
) -> tuple[str, ...]:
    """Load a plugin, check it, register it, and take what it offers.

    Returns:
        What it offers, for people.
    """
    manager = plugins.manager
    loaded = candidate.load()
    if isclass(loaded):
        loaded = loaded()
    _check_api(loaded)
    manager.register(loaded, name)
    manager.check_pending()
    callers = manager.get_hookcallers(loaded) or []
    _check_wrappers(manager, name, callers)
    others = [plugin for plugin in manager.get_plugins() if plugin is not loaded]
    trial = NodeRegistry()
    manager.subset_hook_caller("register_nodes", others)(registry=trial.owned_by(name))
    commands = _commands(plugins, name, others, reserved)
    for graph in trial.graphs():
        if graph.name in choice_names("graph"):
            raise ConfigError(
                f"plugin {name} registers the graph '{graph.name}', which comes with moshi-pipe",
                fix="rename the graph in the plugin",
            )
    plugins.nodes.take(trial)  # refused as a whole when one name is taken
    plugins.commands.update(commands)
    offers = [f"{entry.kind} {entry.name}" for entry in trial]
    offers += [f"graph {graph.name}" for graph in trial.graphs()]
    offers += [f"options of backend {backend.name}" for backend in trial.backends()]
    offers += [f"command {command}" for command in commands]
    hooks = sorted(caller.name for caller in callers)
    offers += [f"hook {hook}" for hook in hooks if not hook.startswith("register_")]
    if not offers and not hooks:
        raise ConfigError(
            "it has no hook",
            got=repr(loaded),
            wanted="a module or object with functions marked @hookimpl",
            fix="mark them, or name the object: module:object",
        )
    return tuple(offers)


def _check_api(loaded: Any) -> None:
    """Refuse a plugin that was written for another version of the hooks.

    Raises:
        ConfigError: Names both versions.
    """
    module = sys.modules.get(getattr(type(loaded), "__module__", ""))
    declared = getattr(loaded, "moshi_pipe_api", getattr(module, "moshi_pipe_api", API_VERSION))
    if declared == API_VERSION:
        return
    newer = isinstance(declared, int) and declared > API_VERSION
    raise ConfigError(
        f"it is written for version {declared} of the plugin API, this moshi-pipe has "
        f"version {API_VERSION}",
        fix="upgrade moshi-pipe, or install an older version of the plugin"
        if newer
        else f"upgrade the plugin; its module says moshi_pipe_api = {declared!r}",
    )


def _check_wrappers(manager: pluggy.PluginManager, name: str, callers: Iterable[Any]) -> None:
    """Refuse hook wrappers: whoever wraps a hook changes what other plugins answer.

    Raises:
        ConfigError: The plugin has one.
    """
    for caller in callers:
        for impl in caller.get_hookimpls():
            if impl.plugin_name == name and (impl.wrapper or impl.hookwrapper):
                raise ConfigError(f"its hook {caller.name} is a wrapper, which no hook here takes")


def _commands(
    plugins: Plugins, name: str, others: list[Any], reserved: Sequence[str]
) -> dict[str, Command]:
    """Commands of one plugin.

    Raises:
        ConfigError: A name is taken, or what is given is no command.
    """
    commands: dict[str, Command] = {}
    hook = plugins.manager.subset_hook_caller("register_commands", others)
    for offered in hook():
        for command in offered:
            if not isinstance(command, Command):
                raise ConfigError(
                    "register_commands gives what is no command",
                    got=repr(command),
                    wanted="moshi_pipe.hooks.Command",
                )
            if command.name in {*plugins.commands, *commands, *reserved}:
                raise ConfigError(
                    f"plugin {name} registers the command '{command.name}', which is taken",
                    fix="rename the command in the plugin",
                )
            commands[command.name] = command
    return commands


def _explain(error: BaseException, candidate: _Candidate) -> tuple[str, str]:
    """Why a plugin was left out, and what to do about it."""
    leave_out = f"to be told no more: -p no:{candidate.name}"
    if isinstance(error, MoshiPipeError):
        parts = [error.what, error.got, f"wanted: {error.wanted}" if error.wanted else None]
        return "; ".join(part for part in parts if part), error.fix or leave_out
    reason = f"{type(error).__name__}: {error}"
    module = getattr(error, "name", None) if isinstance(error, ImportError) else None
    if module == PROJECT or str(module).startswith(f"{PROJECT}."):
        return reason, "it is written for another moshi-pipe: upgrade one of the two"
    if isinstance(error, ModuleNotFoundError) and module:
        return reason, f"install what it needs: {module}; {leave_out}"
    return reason, f"tell its authors; {leave_out}"
