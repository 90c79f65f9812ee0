"""``moshi-pipe plugins``: which plugins there are, what one offers, and whether all are sound."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import ConfigError, MoshiPipeError, closest
from moshi_pipe.hooks import API_VERSION, hook_contract, option_lines
from moshi_pipe.plugins import load_plugins
from moshi_pipe.registry import BUILT_IN
from moshi_pipe.units import format_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from moshi_pipe.plugins import PluginInfo, Plugins

USAGE: Final = "[list|show NAME|doctor] [--json|--requirements]"

_ACTIONS: Final = ("list", "show", "doctor")
_SLOW_MS: Final = 200.0  # every command waits for the imports of all plugins

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "FAIL"


def details() -> str:
    """Further lines for ``--help plugins``."""
    return (
        "\n"
        "  list             name, origin, what each offers, why one was left out\n"
        "  show NAME        the same of one, with its options and hooks\n"
        "  doctor           check each; the exit code is 1 when one fails\n"
        "  --json           as JSON\n"
        "  --requirements   the installed ones as lines for pip\n"
        "\n"
        "  Where plugins come from: installed distributions (entry points of the group\n"
        "  moshi_pipe), MOSHI_PIPE_PLUGINS=my_module,no:NAME, and --plugins-dir DIR.\n"
        "  -p no:NAME leaves one out, on any command line.\n"
    )


def plugins_command(words: Sequence[str], reserved: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: What follows ``moshi-pipe plugins``.
        reserved: Commands that plugins may not take.

    Returns:
        The exit code: 1 when ``doctor`` found a plugin that fails.

    Raises:
        ConfigError: The words cannot be read, or there is no such plugin.
    """
    flags = [word for word in words if word.startswith("--")]
    rest = [word for word in words if not word.startswith("--")]
    for flag in flags:
        known = ("--json", "--requirements")
        if flag not in known:
            raise ConfigError(f"there is no flag '{flag}'", wanted=closest(flag, known))
    action, *names = rest or ["list"]
    if action not in _ACTIONS:
        raise ConfigError(
            f"`moshi-pipe plugins` cannot '{action}'", wanted=closest(action, _ACTIONS)
        )
    if len(names) != (action == "show"):
        raise ConfigError(
            "cannot read the words after `moshi-pipe plugins`",
            got=" ".join(words),
            wanted=f"moshi-pipe plugins {USAGE}",
        )
    plugins = load_plugins(reserved=reserved)
    if "--requirements" in flags:
        sys.stdout.write("".join(f"{line}\n" for line in requirements(plugins.infos)))
        return 0
    as_json = "--json" in flags
    if action == "show":
        return _show(plugins, names[0], as_json)
    return _doctor(plugins, as_json) if action == "doctor" else _list(plugins, as_json)


def requirements(infos: Sequence[PluginInfo]) -> list[str]:
    """Lines for pip that install the same plugins; those without a distribution cannot be named."""
    pinned = {
        f"{info.distribution}=={info.version}"
        for info in infos
        if info.distribution and not info.blocked
    }
    return sorted(pinned)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found out about a plugin.

    Attributes:
        check: What was checked.
        status: One of :data:`OK`, :data:`WARN` and :data:`FAIL`.
        found: What was found.
        fix: What to do; empty when nothing is.
    """

    check: str
    status: str
    found: str
    fix: str = ""


def examine(plugins: Plugins, info: PluginInfo) -> list[Finding]:
    """Check one plugin.

    Whether it loads; how long that takes; whether its node classes import; whether its options are
    dataclasses whose fields all have a default's type and a sentence; whether its distribution's
    requirements are met.
    """
    if info.blocked:
        return [Finding("loads", WARN, info.error or "left out")]
    if info.error is not None:
        return [Finding("loads", FAIL, info.error, info.fix or "")]
    slow = info.load_ms > _SLOW_MS
    findings = [
        Finding(
            "loads",
            WARN if slow else OK,
            f"in {info.load_ms:.0f} ms, plugin API {API_VERSION}",
            'every command waits for it: register "module:Class" instead of importing it'
            if slow
            else "",
        )
    ]
    for entry in plugins.nodes:
        if entry.owner == info.name:
            what = f"{entry.kind} {entry.name}"
            findings.append(_check_class(what, entry.load))
            if entry.options is not None:
                findings.append(_check_options(what, entry.load_options))
    for backend in plugins.nodes.backends():
        if backend.owner == info.name:
            findings.append(_check_options(f"backend {backend.name}", backend.load_options))
    if info.distribution is not None:
        findings += _check_requirements(info.distribution)
    return findings


def _check_class(what: str, load: Callable[[], type]) -> Finding:
    """Whether a node's class imports, and says in a line what it is."""
    try:
        cls = load()
    except MoshiPipeError as error:
        return Finding(what, FAIL, error.got or error.what, error.fix or "")
    if not (cls.__doc__ or "").strip():
        return Finding(what, FAIL, "its class says nothing of itself", "give it a docstring")
    return Finding(what, OK, "imports")


def _check_options(what: str, load: Callable[[], type | None]) -> Finding:
    """Whether options are a dataclass that OmegaConf can type, each field with a sentence."""
    check = f"options of {what}"
    try:
        options = load()
        if options is None or not is_dataclass(options):
            return Finding(check, FAIL, "no dataclass", "decorate it with @dataclass")
        from omegaconf import OmegaConf

        OmegaConf.structured(options)
    except Exception as error:  # foreign code, and OmegaConf's many errors
        reason = " ".join(str(error).split())
        return Finding(check, FAIL, f"{type(error).__name__}: {reason}")
    lines = option_lines(options)
    silent = [name for name, _, said in lines if not said]
    if silent:
        return Finding(
            check,
            FAIL,
            f"nothing is said of {', '.join(silent)}",
            "explain each field in the class's docstring under `Attributes:`",
        )
    return Finding(check, OK, f"{format_count(len(lines), 'key')}, all documented")


def _check_requirements(name: str) -> Iterator[Finding]:
    """Whether what a distribution requires is installed, in a version that it takes."""
    from packaging.requirements import Requirement

    problems = []
    needed = [Requirement(text) for text in distribution(name).requires or []]
    needed = [item for item in needed if item.marker is None or item.marker.evaluate({"extra": ""})]
    for item in needed:
        try:
            there = version(item.name)
        except PackageNotFoundError:
            problems.append(f"{item} is not installed")
            continue
        if not item.specifier.contains(there, prereleases=True):
            problems.append(f"{item} is wanted, {there} is installed")
    if problems:
        yield Finding("requirements", FAIL, "; ".join(problems), f"pip install -U {name}")
    else:
        yield Finding("requirements", OK, f"{format_count(len(needed), 'package')}, all there")


def _list(plugins: Plugins, as_json: bool) -> int:
    if as_json:
        _write_json([asdict(info) for info in plugins.infos])
        return 0
    for info in plugins.infos:
        sys.stdout.write(_headline(info))
        for offer in info.offers:
            sys.stdout.write(f"  {offer}\n")
    return 0


def _show(plugins: Plugins, name: str, as_json: bool) -> int:
    infos = [info for info in plugins.infos if info.name == name]
    if not infos:
        names = {info.name for info in plugins.infos}
        raise ConfigError(f"there is no plugin '{name}'", wanted=closest(name, names))
    if as_json:
        rows = [{**asdict(info), "options": _options_of(plugins, info)} for info in infos]
        _write_json(rows[0] if len(rows) == 1 else rows)
        return 0
    for info in infos:
        sys.stdout.write(_headline(info))
        documented = _options_of(plugins, info)
        for offer in info.offers:
            sys.stdout.write(f"  {offer}\n")
            kind, _, hook = offer.partition(" ")
            if kind == "hook":
                sys.stdout.write(f"      called when: {hook_contract(hook).get('When', '')}\n")
            for line in documented.get(offer, []):
                said = f"  {line['doc']}" if line["doc"] else ""
                sys.stdout.write(f"      {line['key']}={line['default']}{said}\n")
    return 0


def _options_of(plugins: Plugins, info: PluginInfo) -> dict[str, list[dict[str, str]]]:
    """Keys, defaults and documentation of everything that a plugin offers, by offer."""
    loaders: dict[str, Callable[[], type | None]] = {
        f"{entry.kind} {entry.name}": entry.load_options
        for entry in plugins.nodes
        if entry.owner == info.name
    }
    for backend in plugins.nodes.backends():
        if backend.owner == info.name:
            loaders[f"options of backend {backend.name}"] = backend.load_options
    found = {}
    for offer, load in loaders.items():
        try:
            options = load()
        except MoshiPipeError:  # `plugins doctor` tells why
            continue
        if options is not None:
            found[offer] = [
                {"key": key, "default": default, "doc": said}
                for key, default, said in option_lines(options)
            ]
    return found


def _doctor(plugins: Plugins, as_json: bool) -> int:
    found = [(info, examine(plugins, info)) for info in plugins.infos]
    failed = [info.name for info, rows in found if any(row.status == FAIL for row in rows)]
    if as_json:
        _write_json(
            [
                {"plugin": info.name, "origin": info.origin, "findings": [asdict(r) for r in rows]}
                for info, rows in found
            ]
        )
        return int(bool(failed))
    for info, rows in found:
        sys.stdout.write(f"{info.name}  ({info.origin})\n")
        for row in rows:
            sys.stdout.write(f"  {row.status:<5}{row.check}: {' '.join(row.found.split())}\n")
            if row.fix:
                sys.stdout.write(f"       do: {row.fix}\n")
    foreign = sum(info.name not in BUILT_IN for info in plugins.infos)
    verdict = f"failed: {', '.join(failed)}" if failed else "all are sound"
    sys.stdout.write(f"\n{format_count(foreign, 'plugin')} besides our own; {verdict}\n")
    return int(bool(failed))


def _headline(info: PluginInfo) -> str:
    """Name and origin, and why it was left out."""
    text = f"{info.name}  ({info.origin})\n"
    if info.error is not None:
        text += "  left out: " + info.error.replace("\n", "\n    ") + "\n"
        if info.fix and not info.blocked:
            text += "  do: " + info.fix + "\n"
    return text


def _write_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
