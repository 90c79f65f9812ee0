"""Everything that a plugin can add, and where it adds it.

A plugin is a module or object with functions marked ``@hookimpl``, found through the entry-point
group ``moshi_pipe``. The first word of a hook says how answers combine: ``register_*`` are all
collected, ``open_*`` stops at the first answer, ``on_*`` only observe. What comes with the package
is registered through the same hooks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import pluggy

from moshi_pipe.errors import ConfigError, MoshiPipeError, closest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from moshi_pipe.graph.packet import Packet
    from moshi_pipe.models.checkpoint import Checkpoint
    from moshi_pipe.models.protocols import Codec, SpeechLM

    Progress = Callable[[int, int], None]

PROJECT: Final = "moshi_pipe"
"""pluggy's project name and the entry-point group."""

KINDS: Final = ("source", "sink", "node")
"""Kinds of nodes: ``source`` and ``sink`` are config groups; ``node`` is a batched node that a
graph names by ``kind:``."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """One registered node.

    Attributes:
        kind: One of :data:`KINDS`.
        name: What users choose it by, such as ``file`` in ``source=file``.
        cls: The class, or ``module:Class`` to import when it is used.
        options: Its dataclass of options, or ``module:Class``; None for a node without options.
        owner: Plugin that registered it.
    """

    kind: str
    name: str
    cls: type | str
    options: type | str | None
    owner: str

    def load(self) -> type:
        """Return the class, importing its module if need be.

        Raises:
            MoshiPipeError: The module cannot be imported or lacks the class.
        """
        return self._resolve(self.cls)

    def load_options(self) -> type | None:
        """Return the dataclass of options, importing its module if need be.

        Raises:
            MoshiPipeError: The module cannot be imported, or what it gives is no dataclass.
        """
        if self.options is None:
            return None
        options = self._resolve(self.options)
        if not is_dataclass(options):
            raise MoshiPipeError(
                f"the options of {self.kind} '{self.name}' cannot be used",
                got=f"{options!r}, from plugin {self.owner}",
                wanted="a dataclass",
            )
        return options

    def _resolve(self, reference: type | str) -> type:
        if not isinstance(reference, str):
            return reference
        module, _, attribute = reference.partition(":")
        try:
            found: type = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise MoshiPipeError(
                f"{self.kind} '{self.name}' of plugin {self.owner} cannot be loaded",
                got=f"{type(error).__name__}: {error}",
                wanted=reference,
            ) from error
        return found


class NodeRegistry:
    """Nodes by kind and name. A name that is taken is refused: nothing is overridden silently."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], NodeEntry] = {}
        self._owner = "moshi-pipe"

    def add(self, kind: str, name: str, cls: type | str, options: type | str | None = None) -> None:
        """Offer a node.

        Args:
            kind: ``source``, ``sink`` or ``node``.
            name: What users choose it by; a valid config key.
            cls: The node class, constructed as ``cls(options)``, a batched
                node as ``cls()``. A string ``module:Class`` is
                imported when the node is used, so that listing it costs nothing.
            options: Dataclass of options, likewise.

        Raises:
            ConfigError: The kind is unknown, the name is no key or taken; names both owners.
        """
        if kind not in KINDS:
            raise ConfigError(
                f"plugin {self._owner} registers '{name}' under an unknown kind",
                got=kind,
                wanted=closest(kind, KINDS),
            )
        if not name.replace(".", "_").isidentifier():
            raise ConfigError(
                f"plugin {self._owner} registers a {kind} under a name that is no config key",
                got=repr(name),
                wanted="letters, digits and underscores",
            )
        taken = self._entries.get((kind, name))
        if taken is not None:
            raise ConfigError(
                f"two plugins register the {kind} '{name}'",
                got=f"{taken.owner} has it, {self._owner} wants it too",
                wanted="one owner per name",
                fix=f"uninstall one of the two, or rename the {kind} in {self._owner}",
            )
        self._entries[kind, name] = NodeEntry(kind, name, cls, options, self._owner)

    def get(self, kind: str, name: str) -> NodeEntry:
        """Find a node.

        Raises:
            ConfigError: No such node; gives the closest name.
        """
        entry = self._entries.get((kind, name))
        if entry is None:
            raise ConfigError(
                f"there is no {kind} '{name}'", wanted=closest(name, self.names(kind))
            )
        return entry

    def names(self, kind: str) -> list[str]:
        """Names of one kind, sorted."""
        return sorted(name for known, name in self._entries if known == kind)

    def __iter__(self) -> Iterator[NodeEntry]:
        return iter(self._entries.values())

    def owned_by(self, owner: str) -> OwnedRegistry:
        """Return a view whose additions belong to ``owner``; what plugins are given."""
        return OwnedRegistry(self, owner)


class OwnedRegistry:
    """What a plugin sees of the registry: it can only add, under its own name."""

    def __init__(self, registry: NodeRegistry, owner: str) -> None:
        self._registry = registry
        self._plugin = owner

    def add(self, kind: str, name: str, cls: type | str, options: type | str | None = None) -> None:
        """Offer a node; see :meth:`NodeRegistry.add`."""
        before, self._registry._owner = self._registry._owner, self._plugin
        try:
            self._registry.add(kind, name, cls, options)
        finally:
            self._registry._owner = before


@dataclass(frozen=True, slots=True)
class Command:
    """A command of ``moshi-pipe``.

    Attributes:
        name: First word on the command line.
        summary: One line for the help.
        run: Called with the words after the name; returns the exit code.
        usage: What follows the name, such as ``[key=value ...]``.
        details: Gives further lines for ``--help NAME``.
    """

    name: str
    summary: str
    run: Callable[[Sequence[str]], int]
    usage: str = ""
    details: Callable[[], str] | None = None


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How a model shall run.

    Attributes:
        backend: Name of the backend, such as ``torch``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or a name of the backend's own.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``: the language model's weights.
        kv_dtype: Of stored keys and values; None takes ``dtype``.
        numerics: ``fast``, or ``reference`` to follow the reference operation by operation.
        context: Frames that the language model sees; None takes the checkpoint's.
        codec_backend: Of the codec, where it differs from ``backend``; its :meth:`Hooks.open_codec`
            finds it under ``backend``.
        quant: How the language model's weights are stored: ``none``, ``int8`` ...
    """

    backend: str = "torch"
    device: str = "auto"
    dtype: str = "auto"
    kv_dtype: str | None = None
    numerics: str = "fast"
    context: int | None = None
    codec_backend: str | None = None
    quant: str = "none"


class Hooks:
    """The hooks, in the order in which a run meets them."""

    @hookspec
    def register_nodes(self, registry: OwnedRegistry) -> None:
        """Offer sources, sinks and batched nodes.

        Called once per process, before the configuration is composed; all plugins are asked.
        A plugin that raises is left out, with its reason in ``moshi-pipe plugins``. Import nothing
        heavy: pass ``"module:Class"`` for what is costly.

        Args:
            registry: Takes ``registry.add(kind, name, cls, Options)``.
        """

    @hookspec
    def register_commands(self) -> Sequence[Command]:
        """Offer commands of ``moshi-pipe``.

        Called when the command line names no built-in command, and for the help; all plugins are
        asked. A name that is taken is refused.

        Returns:
            The plugin's commands.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def open_codec(
        self, checkpoint: Checkpoint, options: BackendOptions, progress: Progress
    ) -> Codec | None:
        """Open the codec of a checkpoint; stops at the first plugin that answers.

        Called once per engine, on the thread that will step it, before the first session. It may
        take seconds.

        Args:
            checkpoint: Its files, found; ``checkpoint.mimi`` is the codec's spec.
            options: Backend, device and types.
            progress: To be called with bytes loaded and bytes in all; seldom is enough.

        Returns:
            A codec ready to step, or None when ``options.backend`` is not yours.

        Raises:
            BackendError: The backend is yours but cannot run here. Do not return None for this:
                the user would read "no such backend" instead of the reason.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def open_lm(
        self, checkpoint: Checkpoint, options: BackendOptions, progress: Progress
    ) -> SpeechLM | None:
        """Open the language model of a checkpoint; stops at the first plugin that answers.

        As :meth:`open_codec`, for ``checkpoint.config.lm``.

        Args:
            checkpoint: Its files, found.
            options: Backend, device and types.
            progress: As for the codec.

        Returns:
            A model ready to step, or None when ``options.backend`` is not yours.

        Raises:
            BackendError: The backend is yours but cannot run here.
        """
        raise NotImplementedError

    @hookspec
    def on_session_start(self, session_id: str, meta: Mapping[str, Any], seed: int) -> None:
        """Learn that a session got its slot, or ended before it did.

        Called on the event loop, once per session; return within 1 ms. A failure is reported once
        and never stops the session.

        Args:
            session_id: Unique in the run.
            meta: From the source: at least ``stem``.
            seed: Of all the session's randomness.
        """

    @hookspec
    def on_frame(self, session_id: str, packet: Packet) -> None:
        """Learn of one output of one frame, after the sinks have it.

        Called on the event loop, once per packet; return within 1 ms.

        Args:
            session_id: The session.
            packet: Not to be changed.
        """

    @hookspec
    def on_text(self, session_id: str, text: str, start_s: float, end_s: float) -> None:
        """Learn of one whole word of the model.

        Called on the event loop, once per word; return within 1 ms.

        Args:
            session_id: The session.
            text: The word.
            start_s: When it begins, seconds from the start of the input.
            end_s: When it ends, likewise.
        """

    @hookspec
    def on_deadline_missed(self, session_id: str, frame: int, late_ms: float) -> None:
        """Learn that a live frame was answered after its deadline.

        Called on the engine's thread, between ticks; return within 1 ms: whatever it takes makes
        the next frame late too.

        Args:
            session_id: The session.
            frame: Number of the frame.
            late_ms: By how much, past ``engine.budget_ms``.
        """

    @hookspec
    def on_session_end(self, session_id: str, frames: int, error: str | None) -> None:
        """Learn that a session is over and its sinks are closed.

        Called on the event loop, once per session.

        Args:
            session_id: The session.
            frames: How many it lasted.
            error: Why it failed; None when it did not.
        """


def hook_names() -> list[str]:
    """Names of all hooks, in the order in which a run meets them."""
    return [name for name in vars(Hooks) if not name.startswith("_")]


def option_lines(options: type) -> list[tuple[str, str, str]]:
    """Name, default and documentation of each field of a dataclass of options.

    The documentation is what the class's docstring says under ``Attributes:``.
    """
    documented = _attribute_docs(options.__doc__ or "")
    lines = []
    for item in fields(options):
        default = item.default
        shown = "???" if not isinstance(default, (str, int, float, bool, type(None))) else default
        if shown is None:
            shown = "null"
        lines.append((item.name, str(shown), documented.get(item.name, "")))
    return lines


def _attribute_docs(docstring: str) -> dict[str, str]:
    """Read the ``Attributes:`` section of a docstring."""
    docs: dict[str, str] = {}
    current: str | None = None
    inside = False
    for line in docstring.splitlines():
        text = line.strip()
        if text in ("Attributes:", "Args:"):
            inside, indent = True, len(line) - len(line.lstrip())
            continue
        if not inside or not text:
            continue
        depth = len(line) - len(line.lstrip())
        if depth <= indent:
            break
        name, colon, rest = text.partition(":")
        if depth == indent + 4 and colon and name.isidentifier():
            current = name
            docs[name] = rest.strip()
        elif current is not None:
            docs[current] = f"{docs[current]} {text}"
    return docs
