"""What plugins register: nodes, graphs and options of backends, by name and owner.

Nothing is overridden silently: a name that is taken is refused, with both owners. Classes may be
given as ``module:Class`` and are imported when they are used.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import BackendError, ConfigError, MoshiPipeError, closest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BUILT_IN: Final = ("nodes", "torch")
"""The package's own plugins."""

KINDS: Final = ("source", "sink", "node", "engine")
"""Kinds of nodes: ``source`` and ``sink`` are config groups; ``node`` is a batched node that a
graph names by ``kind:``; ``engine`` is a config group too: what runs a whole configuration, see
:class:`moshi_pipe.build.ForeignEngine`."""


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
        return _resolve(self.cls, f"{self.kind} '{self.name}'", self.owner)

    def load_options(self) -> type | None:
        """Return the dataclass of options, importing its module if need be.

        Raises:
            MoshiPipeError: The module cannot be imported, or what it gives is no dataclass.
        """
        return _resolve_options(self.options, f"{self.kind} '{self.name}'", self.owner)

    def make(self, options: Any) -> Any:
        """Construct the node: ``cls(options)``, or ``cls()`` where it has none.

        Raises:
            MoshiPipeError: It cannot be constructed; names the plugin.
        """
        cls = self.load()
        try:
            made = cls() if self.options is None else cls(options)
        except MoshiPipeError:
            raise
        except Exception as error:  # foreign code: whatever it raises is its reason
            if self.owner in BUILT_IN:
                raise
            raise plugin_failed(
                f"{self.kind} '{self.name}'", self.owner, "being made", error
            ) from error
        with suppress(AttributeError):  # a class with slots has no room for it
            made.plugin = None if self.owner in BUILT_IN else self.owner
        return made


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """A backend that has options of its own.

    Attributes:
        name: What users choose it by, such as ``mlx`` in ``backend=mlx``.
        options: Its dataclass of options, or ``module:Class``.
        owner: Plugin that registered it.
    """

    name: str
    options: type | str
    owner: str

    def load_options(self) -> type:
        """Return the dataclass of options, importing its module if need be.

        Raises:
            MoshiPipeError: The module cannot be imported, or what it gives is no dataclass.
        """
        options = _resolve_options(self.options, f"backend '{self.name}'", self.owner)
        if options is None:
            raise RuntimeError("a backend is registered for its options")
        return options


@dataclass(frozen=True, slots=True)
class GraphEntry:
    """A graph that a plugin offers, so that its nodes can be used without writing one.

    Attributes:
        name: What users choose it by: ``graph=NAME``.
        config: As a file of ``conf/graph`` would say it.
        summary: One line for the help.
        owner: Plugin that registered it.
    """

    name: str
    config: Mapping[str, Any]
    summary: str
    owner: str


def plugin_failed(what: str, owner: str, doing: str, error: BaseException) -> BackendError:
    """The error for foreign code that raised what it should not: names the plugin and the fix.

    Args:
        what: The part, such as ``sink 'loudness'``.
        owner: The plugin that gave it.
        doing: What it did, such as ``step``.
        error: What it raised.
    """
    return BackendError(
        f"{what} of plugin {owner} failed in {doing}",
        got=f"{type(error).__name__}: {error}",
        fix=f"tell its authors (--verbose shows where); to run without it: -p no:{owner}",
    )


def _resolve(reference: type | str, what: str, owner: str) -> type:
    """Import ``module:Class``."""
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    try:
        found: type = getattr(import_module(module), attribute)
    except Exception as error:  # an import runs foreign code
        raise MoshiPipeError(
            f"{what} of plugin {owner} cannot be loaded",
            got=f"{type(error).__name__}: {error}",
            wanted=reference,
            fix=f"install what it needs, or run without it: -p no:{owner}",
        ) from error
    return found


def _resolve_options(reference: type | str | None, what: str, owner: str) -> type | None:
    """Import a dataclass of options."""
    if reference is None:
        return None
    options = _resolve(reference, what, owner)
    if not is_dataclass(options):
        raise MoshiPipeError(
            f"the options of {what} cannot be used",
            got=f"{options!r}, from plugin {owner}",
            wanted="a dataclass",
        )
    return options


class NodeRegistry:
    """Nodes by kind and name. A name that is taken is refused: nothing is overridden silently."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], NodeEntry] = {}
        self._backends: dict[str, BackendEntry] = {}
        self._graphs: dict[str, GraphEntry] = {}
        self._owner = "moshi-pipe"

    def add(self, kind: str, name: str, cls: type | str, options: type | str | None = None) -> None:
        """Offer a node.

        Args:
            kind: ``source``, ``sink``, ``node`` or ``engine``.
            name: What users choose it by; a valid config key.
            cls: The node class, constructed as ``cls(options)``, or ``cls()`` without options. A
                string ``module:Class`` is imported when the node is used, so that listing it
                costs nothing.
            options: Dataclass of options, likewise; its docstring explains each field under
                ``Attributes:``.

        Raises:
            ConfigError: The kind is unknown, the name is no key or taken; names both owners.
        """
        if kind not in KINDS:
            raise ConfigError(
                f"plugin {self._owner} registers '{name}' under an unknown kind",
                got=kind,
                wanted=closest(kind, KINDS),
            )
        self._check_name(kind, name)
        self._check_free(kind, name, self._entries.get((kind, name)))
        self._entries[kind, name] = NodeEntry(kind, name, cls, options, self._owner)

    def add_backend(self, name: str, options: type | str) -> None:
        """Say that a backend has options of its own: ``backend_options.NAME.KEY=VALUE``.

        The hooks :meth:`Hooks.open_codec` and :meth:`Hooks.open_lm` find an instance under
        ``options.own[name]``. A backend without options need not be added.

        Args:
            name: What users choose it by.
            options: Dataclass of options, or ``module:Class``.

        Raises:
            ConfigError: The name is no key or taken; names both owners.
        """
        self._check_name("backend", name)
        self._check_free("backend", name, self._backends.get(name))
        self._backends[name] = BackendEntry(name, options, self._owner)

    def add_graph(self, name: str, config: Mapping[str, Any], summary: str = "") -> None:
        """Offer a graph: ``graph=NAME``.

        Args:
            name: What users choose it by.
            config: ``nodes``, ``inputs``, ``links`` and ``outputs``, as in a file of
                ``conf/graph``; its ``name`` is filled in.
            summary: One line for the help.

        Raises:
            ConfigError: The name is no key or taken; names both owners.
        """
        self._check_name("graph", name)
        self._check_free("graph", name, self._graphs.get(name))
        self._graphs[name] = GraphEntry(name, {"name": name, **config}, summary, self._owner)

    def take(self, other: NodeRegistry) -> None:
        """Take over everything from another registry, its owners included.

        Raises:
            ConfigError: A name is taken; nothing was added.
        """
        for (kind, name), entry in other._entries.items():
            self._check_free(kind, name, self._entries.get((kind, name)), entry.owner)
        for backend in other._backends.values():
            taken = self._backends.get(backend.name)
            self._check_free("backend", backend.name, taken, backend.owner)
        for graph in other._graphs.values():
            self._check_free("graph", graph.name, self._graphs.get(graph.name), graph.owner)
        self._entries.update(other._entries)
        self._backends.update(other._backends)
        self._graphs.update(other._graphs)

    def backends(self) -> list[BackendEntry]:
        """Backends with options of their own, by name."""
        return [self._backends[name] for name in sorted(self._backends)]

    def graphs(self) -> list[GraphEntry]:
        """Graphs of plugins, by name."""
        return [self._graphs[name] for name in sorted(self._graphs)]

    def _check_name(self, kind: str, name: str) -> None:
        if not name.replace(".", "_").isidentifier():
            raise ConfigError(
                f"plugin {self._owner} registers a {kind} under a name that is no config key",
                got=repr(name),
                wanted="letters, digits and underscores",
            )

    def _check_free(
        self,
        kind: str,
        name: str,
        taken: NodeEntry | BackendEntry | GraphEntry | None,
        owner: str | None = None,
    ) -> None:
        if taken is None:
            return
        owner = owner or self._owner
        raise ConfigError(
            f"two plugins register the {kind} '{name}'",
            got=f"{taken.owner} has it, {owner} wants it too",
            wanted="one owner per name",
            fix=f"uninstall one of the two, leave one out (-p no:{taken.owner} or "
            f"-p no:{owner}), or rename the {kind} in {owner}",
        )

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
        with self._as_owner() as registry:
            registry.add(kind, name, cls, options)

    def add_backend(self, name: str, options: type | str) -> None:
        """Say that a backend has options; see :meth:`NodeRegistry.add_backend`."""
        with self._as_owner() as registry:
            registry.add_backend(name, options)

    def add_graph(self, name: str, config: Mapping[str, Any], summary: str = "") -> None:
        """Offer a graph; see :meth:`NodeRegistry.add_graph`."""
        with self._as_owner() as registry:
            registry.add_graph(name, config, summary)

    @contextmanager
    def _as_owner(self) -> Iterator[NodeRegistry]:
        before, self._registry._owner = self._registry._owner, self._plugin
        try:
            yield self._registry
        finally:
            self._registry._owner = before


def option_lines(options: type) -> list[tuple[str, str, str]]:
    """Name, default and documentation of each field of a dataclass of options.

    The documentation is what the class's docstring says under ``Attributes:``, or that of the class
    which it extends.
    """
    documented: dict[str, str] = {}
    for cls in reversed(options.__mro__):
        documented |= docstring_section(cls.__doc__ or "", ("Attributes:", "Args:"))
    lines = []
    for item in fields(options):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        lines.append((item.name, _as_yaml(default), documented.get(item.name, "")))
    return lines


def _as_yaml(value: Any) -> str:
    """A default as a config file writes it; ``???`` where a value must be given."""
    if value is MISSING:
        return "???"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_yaml, value))}]"
    return str(value)


def docstring_section(docstring: str, titles: tuple[str, ...]) -> dict[str, str]:
    """Entries ``name: text`` of a docstring's section; a text may go on in the next lines."""
    docs: dict[str, str] = {}
    current: str | None = None
    inside = False
    for line in docstring.splitlines():
        text = line.strip()
        depth = len(line) - len(line.lstrip())
        if text in titles:
            inside, indent = True, depth
            continue
        if not inside or not text:
            continue
        if depth <= indent:
            break
        name, colon, rest = text.partition(":")
        if depth == indent + 4 and colon and name.isidentifier():
            current = name
            docs[name] = rest.strip()
        elif current is not None:
            docs[current] = f"{docs[current]} {text}"
    return docs
