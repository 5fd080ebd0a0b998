"""``egraph-opt rules``: list rules, show what one says, and test them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.cli.arguments import add_rule_options, seconds, whole_number
from egraph_opt.errors import UsageError, VerificationFailed

if TYPE_CHECKING:
    from egraph_opt.egraph.language import Rule, RuleGroup
    from egraph_opt.packs import Selection

SUMMARY = "list, show and test rewrite rules"
DESCRIPTION = """\
Rewrite rules are equations between tensor programs, grouped by what they are for. Groups from outside come in packs: an
installed package with an entry point in "egraph_opt.rules", or a file FILE.py that defines a Pack, a RuleGroup or
rules. A pack is loaded only where it is named.

  --rules +mine.py            also use the rules of a file
  --rules +vendor_rules       also use an installed pack
  --rules -epilogue           without a group, a rule or a pack
  --rules +mine.py,-bias      both; the words count in their order, packs first

Every rule says how exact it is, and --fp says what is allowed:
  bitwise       every bit stays, NaN and infinities included                always allowed
  reassociates  sums and products in another order, within rounding         not with --fp strict
  real_only     holds for real numbers; NaN, infinities, rounding may show  only with --fp real
  approximate   differs by a share of the result that the rule tells        only where named with +

Without "simplification" the e-graph grows faster and finds less; it is there to be switched off all the same."""
EXAMPLES = (
    "egraph-opt rules list                              every rule, its exactness and where it comes from",
    "egraph-opt rules list --rules +mine.py --fp strict what would be used, and what not",
    "egraph-opt rules show bias                         the equation, its conditions, when it runs",
    "egraph-opt rules show instantiation                all rules of a group",
    "egraph-opt rules test mine.py                      grow programs from its rules and compare exactly",
    "egraph-opt rules test mine.py --junit rules.xml --examples 500",
)
_EXACTNESS = {
    "bitwise": "every bit stays, NaN and infinities included",
    "reassociates": "sums and products in another order, equal within rounding; not with --fp strict",
    "real_only": "equal for real numbers; only with --fp real",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's actions and their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=type(parser))
    listing = actions.add_parser("list", help="every rule in a table", description="List rules in a table.")
    add_rule_options(listing)
    showing = actions.add_parser(
        "show",
        help="what a rule, a group or a pack says",
        description="Show equations, conditions, exactness, and when they run. t.0, t.1 … are what a Python function,"
        " named below the equation, computes for each match.",
    )
    showing.add_argument("name", metavar="NAME", help="a rule, a group, a pack or FILE.py")
    add_rule_options(showing)
    testing = actions.add_parser(
        "test",
        help="try rules out on random programs",
        description="Grow programs from the rules' own patterns, saturate them, and compare all that became equal:"
        " exactly, in floating point, and with NaN and infinities. Exit code 4 where a rule is wrong or never fires."
        " Needs hypothesis: pip install 'egraph-opt[test]'.",
    )
    testing.add_argument("targets", nargs="*", metavar="TARGET", help="FILE.py, pack, group or rule (default: all)")
    testing.add_argument("--junit", type=Path, metavar="FILE.xml", help="also write the results as JUnit XML")
    testing.add_argument(
        "--examples", type=whole_number(1), default=100, metavar="N", help="programs for each rule (default 100)"
    )
    testing.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="seed of the programs (default 0)"
    )
    testing.add_argument(
        "--seconds", type=seconds, default=10.0, metavar="S", help="time limit of each rule (default 10)"
    )
    add_rule_options(testing)


def run(options: argparse.Namespace) -> int:
    """List, show or test."""
    actions = {"list": _list, "show": _show, "test": _test}
    return actions[options.action](options)


def _list(options: argparse.Namespace) -> int:
    from egraph_opt.egraph.rule_text import exactness_text
    from egraph_opt.packs import available, select

    selection = select(options.rules, options.fp)
    rows = [("group", "rule", "exactness", "origin", "used", "what it is")]
    groups = _groups(selection)
    for group in groups:
        about = group.documentation.partition("\n")[0]
        for rule in group.rules:
            used = "yes" if selection.uses(rule) else "no"
            rows.append((group.name, rule.name, exactness_text(rule), rule.origin, used, about))
            about = "″"
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip())
    count = sum(selection.uses(rule) for group in groups for rule in group.rules)
    print(f"\n{len(rows) - 1} rules in {len(groups)} groups, {count} used ({selection.text})")
    installed = available()
    if installed:
        print("installed packs: " + ", ".join(f"{name} ({home})" for name, home in installed.items()))
    return 0


def _show(options: argparse.Namespace) -> int:
    from egraph_opt.packs import select

    words = [options.rules] if options.rules else []
    if _is_file(options.name):
        words.append(f"+{options.name}")
    selection = select(",".join(words), options.fp)
    print("\n\n".join(_described(rule, group, selection) for group, rule in _found(options.name, selection)))
    return 0


def _described(rule: Rule, group: RuleGroup, selection: Selection) -> str:
    from egraph_opt.egraph.rule_text import equation, exactness_text

    lines = [f"{rule.name}  (group {group.name}, {rule.origin})"]
    lines += [f"  {line}" for line in equation(rule)]
    exactness = exactness_text(rule)
    meaning = _EXACTNESS.get(exactness, "differs by up to this share of the largest magnitude; only where named with +")
    lines.append(f"  exactness: {exactness} – {meaning}")
    if rule.original:
        lines.append("  fires on terms of the program itself only, not on those that rules made")
    lines.append(f"  runs: {_when(group.name, selection)}" if selection.uses(rule) else "  runs: not in this choice")
    lines += [f"  {line}".rstrip() for line in group.documentation.splitlines()]
    return "\n".join(lines)


def _when(group: str, selection: Selection) -> str:
    if group == selection.simplification.name:
        return "to saturation, before the phases and after every round"
    phases = [
        f"as phase {number} of {len(selection.phases)} ({phase.rounds} round{'s' if phase.rounds != 1 else ''} at most)"
        for number, phase in enumerate(selection.phases, 1)
        if phase.group.name == group
    ]
    return " and ".join(phases)


def _test(options: argparse.Namespace) -> int:
    from egraph_opt.packs import select
    from egraph_opt.testing import check_rules

    files = [f"+{target}" for target in options.targets if _is_file(target)]
    selection = select(",".join([*files, *([options.rules] if options.rules else [])]), options.fp)
    if options.targets:
        rules = [rule for target in options.targets for _, rule in _found(target, selection)]
    else:
        rules = [rule for group in _groups(selection) for rule in group.rules if rule.name not in selection.off]
    report = check_rules(
        list({rule.name: rule for rule in rules}.values()),
        examples=options.examples,
        seed=options.seed,
        seconds=options.seconds,
    )
    print(report.table())
    if options.junit is not None:
        report.write_junit(options.junit)
    return 0 if report.ok else VerificationFailed.exit_code


def _is_file(name: str) -> bool:
    return name.endswith(".py") or "/" in name


def _groups(selection: Selection) -> Sequence[RuleGroup]:
    from egraph_opt.rules.schedule import GROUPS

    return [*(group for pack in selection.packs for group in pack.groups), *GROUPS]


def _found(name: str, selection: Selection) -> list[tuple[RuleGroup, Rule]]:
    """The rules of a pack, a file, a group, or the one rule of a name; a pack that is not loaded yet is loaded."""
    from egraph_opt.packs import load, suggestion

    groups = _groups(selection)
    reference = str(Path(name).resolve()) if _is_file(name) else name
    for pack in selection.packs:
        if reference in (pack.name, pack.reference):
            return [(group, rule) for group in pack.groups for rule in group.rules]
    for group in groups:
        if group.name == name:
            return [(group, rule) for rule in group.rules]
    for group in groups:
        for rule in group.rules:
            if rule.name == name:
                return [(group, rule)]
    try:
        pack = load(name)
    except UsageError as error:
        known = [*(g.name for g in groups), *(rule.name for g in groups for rule in g.rules)]
        close = suggestion(name, known)
        raise UsageError(f"no rule or group is named {name!r}{close}") if close else error from None
    return [(group, rule) for group in pack.groups for rule in group.rules]
