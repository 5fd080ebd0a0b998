"""Rule packs: groups of rules from outside, loaded only when named, and the choice of what a run uses.

``load("mine.py")`` reads one pack; ``select("+mine.py,-bias")`` chooses packs, groups and rules for a run.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from egraph_opt.egraph.language import Approximate, Rule, RuleGroup
from egraph_opt.errors import UsageError, one_line
from egraph_opt.ir.schedules import KernelSchedule, TuningModel
from egraph_opt.rules.schedule import GROUPS, SIMPLIFICATION, Phase, schedule

if TYPE_CHECKING:
    from egraph_opt.extract.step_info import CostModel
    from egraph_opt.ir.library import LibraryOperator
    from egraph_opt.ir.scalar import ScalarFunction

# Installed packs announce themselves under this entry point group; the value is a Pack or a function that returns one.
ENTRY_POINTS = "egraph_opt.rules"
# strict: only rules that keep every bit, and nodes that sum stay as they are. default: sums and products may be
# re-ordered, too. real: whatever holds for real numbers. Approximate rules run only where they, their group or their
# pack are named with "+".
Policy = Literal["strict", "default", "real"]
POLICIES: tuple[str, ...] = get_args(Policy)
BUILT_IN = "built-in"
_ALLOWED: Mapping[str, tuple[str, ...]] = {
    "strict": ("bitwise",),
    "default": ("bitwise", "reassociates"),
    "real": ("bitwise", "reassociates", "real_only"),
}
# Seconds that the import of a pack may take.
IMPORT_SECONDS = 20.0
_TRIAL = """
import json, sys
sys.path[:], reference = json.loads(sys.argv[1])
from egraph_opt import errors, packs
try:
    packs.load(reference, tried=True)
except errors.UsageError:
    pass
print("imported", end="")
"""
# Names of the e-graph's own rulesets.
_RESERVED = ("extents", "constant")


@dataclass(frozen=True)
class Pack:
    """Rules from outside with the scalar ``functions`` and library ``operators`` they speak of, and ``schedules`` of
    kernels.

    ``reference`` is what it was loaded by, empty for a pack made in a script; ``identity`` tells versions of it apart.
    """

    name: str
    groups: tuple[RuleGroup, ...] = ()
    functions: tuple[ScalarFunction, ...] = ()
    operators: tuple[LibraryOperator, ...] = ()
    schedules: tuple[KernelSchedule | TuningModel, ...] = ()
    documentation: str = ""
    reference: str = field(default="", compare=False)
    identity: str = field(default="", compare=False)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules of all its groups."""
        return tuple(rule for group in self.groups for rule in group.rules)


def available() -> dict[str, str]:
    """Installed packs by name, each with the distribution it comes from; nothing is imported."""
    return {point.name: _distribution(point) for point in sorted(_entry_points(), key=lambda point: point.name)}


def load(reference: str, *, tried: bool = False) -> Pack:
    """A pack by the name of its entry point or of a built-in group, or by the path of a file ``FILE.py``.

    Of a file every Pack, RuleGroup, Rule and schedule at module level is taken. Raises UsageError for an unknown name,
    a missing file, and a pack that raises, hangs or ends the process when it is imported, or is none: it is imported in
    a process of its own first, unless it was ``tried`` before.
    """
    if reference.endswith(".py") or "/" in reference:
        return _from_file(Path(reference), tried)
    for group in GROUPS:
        if group.name == reference:
            return Pack(reference, (group,), documentation=group.documentation, reference=reference)
    points = [point for point in _entry_points() if point.name == reference]
    if not points:
        known = [*available(), *(group.name for group in GROUPS)]
        raise UsageError(
            f"unknown rule pack {reference!r}{suggestion(reference, known)}; installed packs:"
            f" {', '.join(available()) or 'none'}; a file is named by its path, FILE.py"
        )
    if len({point.value for point in points}) > 1:
        homes = " and ".join(map(_distribution, points))
        raise UsageError(f"two installed rule packs are named {reference!r}: of {homes}; uninstall one")
    if not tried:
        _try(reference)
    try:
        found = points[0].load()
        pack = found() if callable(found) and not isinstance(found, RuleGroup) else found
    except Exception as error:
        raise UsageError(f"rule pack {reference!r} ({_distribution(points[0])}) {_raised(error)}") from error
    except SystemExit as error:
        raise UsageError(f"rule pack {reference!r} ({_distribution(points[0])}) ends the process") from error
    if isinstance(pack, RuleGroup):
        pack = Pack(reference, (pack,))
    return _checked(pack, reference, reference, _distribution(points[0]))


_files: dict[tuple[Path, str], Pack] = {}


def _try(reference: str) -> None:
    """Import a pack where it can do no harm; what it raises it will raise here, too."""
    settings = json.dumps([[str(Path(place).absolute()) for place in sys.path], reference])
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _TRIAL, settings], capture_output=True, timeout=IMPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"rule pack {reference!r} was not imported within {IMPORT_SECONDS:g} seconds; what takes long belongs into"
            " functions"
        ) from None
    if not done.stdout.endswith(b"imported"):
        raise UsageError(f"rule pack {reference!r} ends the process when it is imported (status {done.returncode})")


def _from_file(path: Path, tried: bool) -> Pack:
    try:
        path = path.resolve()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise UsageError(f"rule pack {path}: {error.strerror or error}") from error
    if (path, digest) not in _files:
        if not tried:
            _try(str(path))
        module = _executed(path, digest)
        _files[path, digest] = _checked(_gathered(module, path.stem), str(path), str(path), digest)
    return _files[path, digest]


def cost_model(reference: str) -> CostModel:
    """The function or object NAME of a file, given as ``FILE.py:NAME``. Raises UsageError where there is none."""
    return cast("CostModel", named(reference, "cost model", callable))


def named(reference: str, what: str, fits: Callable[[object], bool]) -> Any:
    """What a file calls NAME, given as ``FILE.py:NAME``, if it ``fits``. Raises UsageError where there is none."""
    file, _, name = reference.rpartition(":")
    path = Path(file).resolve()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise UsageError(f"{what} {reference}: {error.strerror or error}") from error
    module = _executed(path, digest)
    found = getattr(module, name, None)
    if not fits(found):
        known = [key for key, value in vars(module).items() if fits(value) and not key.startswith("_")]
        raise UsageError(f"{file} has no {what} {name!r}{suggestion(name, known)}")
    return found


def _executed(path: Path, digest: str) -> ModuleType:
    """The module of a file. Other files beside it are not importable: a pack of several files is a package."""
    name = f"egraph_opt_pack_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"rule pack {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"rule pack {path} {_raised(error)}") from error
    except SystemExit as error:
        del sys.modules[name]
        raise UsageError(f"rule pack {path} ends the process") from error
    return module


def _gathered(module: ModuleType, name: str) -> Pack:
    """All packs, groups, rules and schedules at module level as one pack; what the file has from us is left out."""
    values = list({id(value): value for key, value in vars(module).items() if not key.startswith("__")}.values())
    packs = [value for value in values if isinstance(value, Pack)]
    packed = [group for pack in packs for group in pack.groups]
    groups = [v for v in values if isinstance(v, RuleGroup) and v not in packed and v not in GROUPS]
    grouped = {rule.name for group in (*packed, *groups) for rule in group.rules}
    loose = [v for v in values if isinstance(v, Rule) and v.name not in grouped]
    listed = [rule for v in values if isinstance(v, tuple | list) for rule in v if isinstance(rule, Rule)]
    known = grouped | {rule.name for rule in loose}
    loose += [rule for rule in dict.fromkeys(listed) if rule.name not in known]
    if loose:
        title = f"{_identifier(name)}-rules"
        groups.append(RuleGroup(title, tuple(replace(rule, group=title) for rule in loose)))
    base = packs[0] if len(packs) == 1 else Pack(_identifier(name), documentation=(module.__doc__ or "").strip())
    if len(packs) != 1:
        base = replace(
            base,
            functions=tuple(function for pack in packs for function in pack.functions),
            operators=tuple(operator for pack in packs for operator in pack.operators),
        )
    known_schedules = [schedule for pack in packs for schedule in pack.schedules]
    schedules = [v for v in values if isinstance(v, KernelSchedule | TuningModel) and v not in known_schedules]
    return replace(base, groups=(*packed, *groups), schedules=(*known_schedules, *schedules))


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def _checked(pack: object, where: str, reference: str, identity: str) -> Pack:
    if not isinstance(pack, Pack):
        raise UsageError(f"rule pack {where!r} is a {type(pack).__name__}, not an egraph_opt.packs.Pack")
    if not (pack.groups or pack.functions or pack.operators or pack.schedules):
        raise UsageError(f"rule pack {where!r} is empty: no Pack, RuleGroup, Rule or schedule is at module level")
    if not pack.name or _identifier(pack.name) != pack.name:
        raise UsageError(f"rule pack {where!r}: the name {pack.name!r} must consist of letters, digits, '-' and '_'")
    for group in pack.groups:
        if not isinstance(group, RuleGroup):
            raise UsageError(f"rule pack {pack.name!r}: its groups hold a {type(group).__name__}, not a RuleGroup")
    for entry in pack.schedules:
        if not isinstance(entry, KernelSchedule | TuningModel):
            raise UsageError(f"rule pack {pack.name!r}: its schedules hold a {type(entry).__name__}; see schedule()")
    groups = tuple(group.of_pack(pack.name) for group in pack.groups)
    return replace(pack, groups=groups, reference=reference, identity=identity)


def _raised(error: BaseException) -> str:
    return one_line(f"raised when it was loaded: {type(error).__name__}: {error}")


def _entry_points() -> list[metadata.EntryPoint]:
    return list(metadata.entry_points(group=ENTRY_POINTS))


def _distribution(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def suggestion(name: str, known: Iterable[str]) -> str:
    """`` (did you mean …?)`` with the known names that are close, or nothing."""
    close = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


@dataclass(frozen=True)
class Selection:
    """What a run may use: the rules of ``packs`` and the built-in ones, without those in ``off``.

    ``named`` are the approximate rules that were asked for with "+".
    """

    packs: tuple[Pack, ...] = ()
    off: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()
    fp: Policy = "default"

    def uses(self, rule: Rule) -> bool:
        """Whether a rule is switched on and its exactness allowed."""
        if rule.name in self.off:
            return False
        if isinstance(rule.exactness, Approximate):
            return rule.name in self.named
        return rule.exactness in _ALLOWED[self.fp]

    @cached_property
    def groups(self) -> tuple[RuleGroup, ...]:
        """All groups with the rules that are used: the simplifications, those of packs, then by phase."""
        return (self.simplification, *dict.fromkeys(phase.group for phase in self.phases))

    @cached_property
    def simplification(self) -> RuleGroup:
        return self._used(SIMPLIFICATION)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of this choice; what has no rules left is not in it."""
        used: dict[str, RuleGroup] = {}
        foreign = [group for pack in self.packs for group in pack.groups]
        found = []
        for phase in schedule(foreign):
            group = used.setdefault(phase.group.name, self._used(phase.group))
            if group.rules:
                found.append(Phase(group, phase.rounds))
        return tuple(found)

    def _used(self, group: RuleGroup) -> RuleGroup:
        rules = tuple(rule for rule in group.rules if self.uses(rule))
        return group if len(rules) == len(group.rules) else replace(group, rules=rules)

    @cached_property
    def schedules(self) -> tuple[KernelSchedule | TuningModel, ...]:
        """The schedules of kernels, spaces of them and cost models of tuning in all packs."""
        return tuple(schedule for pack in self.packs for schedule in pack.schedules)

    @cached_property
    def foreign(self) -> Mapping[str, str]:
        """The packs of all foreign rules that are used, by the rules' names."""
        return {rule.name: pack.name for pack in self.packs for rule in pack.rules if self.uses(rule)}

    def without(self, packs: Iterable[str]) -> Selection:
        """The same choice without some packs."""
        dropped = set(packs)
        gone = {rule.name for pack in self.packs if pack.name in dropped for rule in pack.rules}
        kept = tuple(pack for pack in self.packs if pack.name not in dropped)
        return replace(self, packs=kept, off=self.off - gone, named=self.named - gone)

    def switched_off(self, *rules: str) -> Selection:
        """The same choice without some rules."""
        return replace(self, off=self.off | set(rules))

    @cached_property
    def text(self) -> str:
        """The choice as text, equal for equal choices: for reports and keys of caches."""
        parts = [f"fp={self.fp}"]
        parts += [f"+{pack.name}" + (f"@{pack.identity}" if pack.identity else "") for pack in self.packs]
        parts += [f"+{name}" for name in sorted(self.named)]
        groups = {group.name for group in self._everything()}
        for group in self._everything():
            names = [rule.name for rule in group.rules]
            if names and self.off.issuperset(names):
                parts.append(f"-{group.name}")
            else:
                parts += [f"-{group.name}.{n}" if n in groups else f"-{n}" for n in names if n in self.off]
        return " ".join(parts)

    def _everything(self) -> Iterator[RuleGroup]:
        yield from (group for pack in self.packs for group in pack.groups)
        yield from GROUPS


def select(spec: str | Sequence[str | Pack] = "", fp: str = "default") -> Selection:
    """What a run uses, from a list such as ``"+mine.py,-bias,-windows"`` or a sequence of such words and packs.

    ``+NAME`` adds a pack (or switches a rule or group on again), ``-NAME`` switches a pack, a group or a rule off; the
    words count in their order, packs first. ``GROUP.RULE`` is the rule where a group has its name, too. The scalar
    functions and operators of the packs are registered. Raises UsageError for an unknown name, with close ones.
    """
    if fp not in POLICIES:
        raise UsageError(f"unknown policy {fp!r}; choose {', '.join(POLICIES)}")
    words = [part.strip() for part in spec.split(",") if part.strip()] if isinstance(spec, str) else list(spec)
    packs: dict[str, Pack] = {}
    changes: list[tuple[str, str]] = []
    later: list[tuple[str, str]] = []
    for word in words:
        if isinstance(word, Pack) and any(_rules_of(word.reference, ())):
            changes.append(("+", word.reference))
            continue
        if isinstance(word, Pack):
            pack = _checked(word, word.name, word.reference, word.identity)
        elif not word.startswith(("+", "-")) or len(word) < 2:
            raise UsageError(f"rules are switched by +NAME or -NAME, not {word!r}; e.g. --rules +mine.py,-epilogue")
        elif word[0] == "-" or any(_rules_of(word[1:], ())):
            changes.append((word[0], word[1:]))
            continue
        else:
            try:
                pack = load(word[1:])
            except UsageError:
                if word[1:].endswith(".py") or "/" in word[1:] or word[1:] in available():
                    raise
                later.append((word[0], word[1:]))  # perhaps a rule or group of a pack
                changes.append((word[0], word[1:]))
                continue
        if pack.name in packs and packs[pack.name] != pack:
            raise UsageError(f"two different rule packs are named {pack.name!r}; rename one")
        packs[pack.name] = pack
    _refuse_clashes(packs.values())
    named = {rule.name for pack in packs.values() for rule in pack.rules}
    off: set[str] = set()
    for sign, name in changes:
        if (sign, name) in later and not any(_rules_of(name, packs.values())):
            load(name)  # raises: it is nothing at all
        if sign == "-" and name in packs:
            del packs[name]
            continue
        rules = set(_rules_of(name, packs.values()))
        if not rules:
            known = [*packs, *(g.name for g in _groups(packs.values())), *_rule_names(packs.values())]
            loaded = f"; it is installed but not loaded, +{name} loads it" if name in available() else ""
            raise UsageError(f"no rule, group or loaded pack is named {name!r}{suggestion(name, known)}{loaded}")
        off, named = (off | rules, named - rules) if sign == "-" else (off - rules, named | rules)
    named &= {r.name for g in _groups(packs.values()) for r in g.rules if isinstance(r.exactness, Approximate)}
    off &= set(_rule_names(packs.values()))
    policy: Policy = fp  # type: ignore[assignment]
    return registered(Selection(tuple(packs.values()), frozenset(off), frozenset(named), policy))


def _groups(packs: Iterable[Pack]) -> list[RuleGroup]:
    return [*GROUPS, *(group for pack in packs for group in pack.groups)]


def _rule_names(packs: Iterable[Pack]) -> list[str]:
    return [rule.name for group in _groups(packs) for rule in group.rules]


def _rules_of(name: str, packs: Iterable[Pack]) -> list[str]:
    """The rules of a group, or the one rule, of a name; ``GROUP.RULE`` is a rule, too."""
    packs = list(packs)
    for group in _groups(packs):
        if group.name == name:
            return [rule.name for rule in group.rules]
        for rule in group.rules:
            if name == f"{group.name}.{rule.name}":
                return [rule.name]
    return [name] if name in _rule_names(packs) else []


def _refuse_clashes(packs: Iterable[Pack]) -> None:
    """Raises UsageError where two groups or rules share a name."""
    groups = {group.name: BUILT_IN for group in GROUPS} | dict.fromkeys(_RESERVED, BUILT_IN)
    rules = {rule.name: BUILT_IN for group in GROUPS for rule in group.rules}
    for pack in packs:
        for group in pack.groups:
            if group in GROUPS:
                continue
            for kind, taken, name in (("group", groups, group.name), *(("rule", rules, r.name) for r in group.rules)):
                if name in taken:
                    other = "a built-in" if taken[name] == BUILT_IN else f"a {kind} of pack {taken[name]!r} or another"
                    raise UsageError(f"rule pack {pack.name!r}: its {kind} {name!r} has the name of {other}; rename it")
                taken[name] = pack.name


def registered(selection: Selection) -> Selection:
    """The same selection, once the scalar functions and operators of its packs are known to this process."""
    records: list[ScalarFunction | LibraryOperator]
    records = [record for pack in selection.packs for kind in (pack.functions, pack.operators) for record in kind]
    if records:
        from egraph_opt.ir import extensions

        extensions.register(*records)
    return selection
