"""Finding, loading and explaining plugins.

A manager is made by :func:`load_plugins`, never at import; tests make their own. A plugin that
cannot be loaded is left out with its reason, and the rest works.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from moshi_pipe.builtin import BuiltinNodes, TorchBackend
from moshi_pipe.errors import BackendError, ConfigError
from moshi_pipe.hooks import PROJECT, Command, Hooks, NodeRegistry

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moshi_pipe.hooks import BackendOptions, Progress
    from moshi_pipe.models.checkpoint import Checkpoint
    from moshi_pipe.models.protocols import Codec, SpeechLM


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One plugin, for ``moshi-pipe plugins``.

    Attributes:
        name: Name of its entry point; ``nodes`` and ``torch`` are the package's own.
        origin: Distribution and version, or ``built in``.
        offers: What it registered: ``source file``, ``hook open_lm`` ...
        error: Why it was left out; None when it works.
    """

    name: str
    origin: str
    offers: tuple[str, ...] = ()
    error: str | None = None


@dataclass(slots=True)
class Plugins:
    """Everything that plugins gave.

    Attributes:
        manager: Calls the hooks: ``plugins.manager.hook.open_codec(...)``.
        nodes: Sources, sinks and batched nodes by name.
        commands: Foreign commands by name.
        infos: Every plugin found, those that failed included.
    """

    manager: pluggy.PluginManager
    nodes: NodeRegistry
    commands: dict[str, Command] = field(default_factory=dict)
    infos: list[PluginInfo] = field(default_factory=list)

    def open_codec(
        self, checkpoint: Checkpoint, options: BackendOptions, progress: Progress
    ) -> Codec:
        """Open a codec with the backend that the options choose for it.

        Raises:
            BackendError: No plugin has this backend, or it cannot run here.
            CheckpointError: The weights cannot be used.
        """
        options = replace(options, backend=options.codec_backend or options.backend)
        codec: Codec | None = self.manager.hook.open_codec(
            checkpoint=checkpoint, options=options, progress=progress
        )
        if codec is None:
            raise _no_backend("a codec", options.backend)
        return codec

    def open_lm(
        self, checkpoint: Checkpoint, options: BackendOptions, progress: Progress
    ) -> SpeechLM:
        """Open a language model with the backend that the options choose.

        Raises:
            BackendError: No plugin has this backend, or it cannot run here.
            CheckpointError: The weights cannot be used.
        """
        lm: SpeechLM | None = self.manager.hook.open_lm(
            checkpoint=checkpoint, options=options, progress=progress
        )
        if lm is None:
            raise _no_backend("a language model", options.backend)
        return lm


def load_plugins(
    extra: Iterable[tuple[str, Any]] = (), *, installed: bool = True, reserved: Sequence[str] = ()
) -> Plugins:
    """Make a manager with the package's own plugins, the installed ones and ``extra``.

    Args:
        extra: Further plugins as (name, module or object); for tests and the Python API.
        installed: Whether to look for entry points of the environment.
        reserved: Commands that plugins may not take.

    Returns:
        The manager and what was registered. Nothing is raised for a broken plugin: its reason is
        in ``infos``.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    plugins = Plugins(manager, NodeRegistry())
    found: list[tuple[str, str, Any]] = [
        ("nodes", "built in", BuiltinNodes()),
        ("torch", "built in", TorchBackend()),
    ]
    found += [(point.name, _origin(point), point) for point in _points(installed)]
    found += [(name, "given", plugin) for name, plugin in extra]
    for name, origin, plugin in found:
        plugins.infos.append(_add(plugins, name, origin, plugin, reserved))
    return plugins


def _no_backend(what: str, backend: str) -> BackendError:
    return BackendError(
        f"no plugin opens {what} with backend '{backend}'",
        fix="see `moshi-pipe plugins`; backend=torch comes with the package",
    )


def _points(installed: bool) -> list[EntryPoint]:
    """Entry points of the group, in an order that does not depend on the file system."""
    return sorted(entry_points(group=PROJECT), key=lambda p: p.name) if installed else []


def _origin(point: EntryPoint) -> str:
    dist = point.dist
    return point.value if dist is None else f"{dist.name} {dist.version}"


def _add(
    plugins: Plugins, name: str, origin: str, plugin: Any, reserved: Sequence[str]
) -> PluginInfo:
    """Register one plugin and take what it offers; a failure leaves no trace but the reason."""
    manager = plugins.manager
    trial = NodeRegistry()
    try:
        loaded = plugin.load() if isinstance(plugin, EntryPoint) else plugin
        manager.register(loaded, name)
        manager.check_pending()
        others = [p for p in manager.get_plugins() if p is not loaded]
        nodes_hook = manager.subset_hook_caller("register_nodes", others)
        nodes_hook(registry=trial.owned_by(name))
        for entry in trial:  # refused as a whole when one name is taken
            if entry.name in plugins.nodes.names(entry.kind):
                plugins.nodes.owned_by(name).add(entry.kind, entry.name, entry.cls, entry.options)
        commands = _commands(plugins, name, others, reserved)
    except Exception as error:  # a plugin is foreign code: whatever it raises is its reason
        if manager.has_plugin(name):
            manager.unregister(name=name)
        return PluginInfo(name, origin, error=f"{type(error).__name__}: {error}")
    for entry in trial:
        plugins.nodes.owned_by(name).add(entry.kind, entry.name, entry.cls, entry.options)
    plugins.commands.update(commands)
    offers = [f"{entry.kind} {entry.name}" for entry in trial]
    offers += [f"command {command}" for command in commands]
    hooks = sorted(caller.name for caller in manager.get_hookcallers(loaded) or [])
    offers += [f"hook {hook}" for hook in hooks if not hook.startswith("register_")]
    return PluginInfo(name, origin, tuple(offers))


def _commands(
    plugins: Plugins, name: str, others: list[Any], reserved: Sequence[str]
) -> dict[str, Command]:
    """Commands of one plugin.

    Raises:
        ConfigError: A name is taken.
    """
    commands: dict[str, Command] = {}
    hook = plugins.manager.subset_hook_caller("register_commands", others)
    for offered in hook():
        for command in offered:
            if command.name in plugins.commands or command.name in reserved:
                raise ConfigError(
                    f"plugin {name} registers the command '{command.name}', which is taken",
                    fix="rename the command in the plugin",
                )
            commands[command.name] = command
    return commands
