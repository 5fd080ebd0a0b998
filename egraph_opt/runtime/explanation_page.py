"""An explanation as one HTML page that needs nothing else: graphs before and after, chains of rules, costs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from egraph_opt.runtime.explanation import Explanation, GraphNode, Option, Part, PlanStep
from egraph_opt.runtime.explanation_programs import CLOSE, OPEN, Line, Programs, Stage
from egraph_opt.runtime.explanation_text import concerns
from egraph_opt.runtime.graph_layout import HEIGHT, layout
from egraph_opt.runtime.quantities import origin, quantity

# Pixels of one character, around a label, and the most and the least that a node is wide.
CHARACTER, PADDING, NARROW, WIDE = 7.6, 26.0, 84.0, 230.0
MARGIN = 14
# Height of what stands for an input or an output.
END = 26
# Hues by which the nodes of a chain are told from those of others.
HUES = (212, 152, 32, 280, 2, 186, 330, 84, 248, 54)


def page(explanation: Explanation, node: str | None = None) -> str:
    """The page; ``node`` is selected when it opens. The same explanation gives the same page."""
    folder = Path(__file__).parent
    parts = explanation.parts
    before, after = sum(len(part.before) for part in parts), sum(len(part.after) for part in parts)
    facts = [
        f"{len(parts)} part{'s' if len(parts) != 1 else ''} replaced",
        f"{before} → {after} nodes in them",
        f"expected {quantity(sum(part.cost for part in parts), parts[0].unit if parts else 's')}",
    ]
    if explanation.kept:
        facts.append(f"{explanation.kept} left as they were")
    tabs = "".join(
        f'<button class="tab" data-part="{n}">part {escape(p.name)}<small>{len(p.before)} → {len(p.after)}</small>'
        "</button>"
        for n, p in enumerate(parts)
    )
    body = "".join(_part(number, part) for number, part in enumerate(parts))
    start = next((n for n, part in enumerate(parts) if node is not None and concerns(part, node)), 0)
    selected = escape(node or "", quote=True)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(explanation.model)}: how it was optimized</title>"
        f"<style>{(folder / 'explanation_page.css').read_text(encoding='utf-8')}</style></head>"
        f'<body data-start="{start}" data-node="{selected}">'
        f"<header><div><h1>{escape(explanation.model)}</h1>"
        f"<p>{''.join(f'<span>{escape(fact)}</span>' for fact in facts)}</p></div>"
        '<button id="theme" type="button" title="light or dark">◐</button></header>'
        f'<nav class="tabs"{" hidden" if len(parts) < 2 else ""}>{tabs}</nav><main>{body}</main>'
        f"<script>{(folder / 'explanation_page.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


def _part(number: int, part: Part) -> str:
    programs = Programs(part)
    before: dict[str, list[int]] = {}
    after: dict[str, list[int]] = {}
    for position, chain in enumerate(part.chains):
        for name in chain.nodes:
            before.setdefault(name, []).append(position)
    for step in part.steps:
        for name in step.nodes:
            after.setdefault(name, []).extend([step.chain] if step.chain >= 0 else [])
    sources = {t.arguments[0] for t in part.terms if t.constructor == "Source" and t.arguments[2] == "input"}
    kernels = {name for step in part.steps if step.operator == "kernel" for name in step.nodes}
    graphs = (
        f'<div class="graphs">{_graph("before", part.before, before, sources, frozenset())}'
        f"{_graph('after', part.after, after, sources, kernels)}</div>"
    )
    note = f'<p class="note">{escape(part.note)}</p>' if part.note else ""
    rows = "".join(_row(part, position) for position in range(len(part.chains)))
    chains = "".join(_chain(part, programs, position) for position in range(len(part.chains)))
    loose = [step for step in part.steps if step.chain < 0]
    rest = f'<section class="chain">{_costs(loose, part.unit)}</section>' if loose else ""
    return (
        f'<section class="part" data-part="{number}" hidden>{note}{graphs}<div class="below"><aside>'
        f"<h2>What became of what</h2><ol>{rows}</ol></aside><div class='chains'>{chains}{rest}</div></div></section>"
    )


def _graph(
    title: str,
    nodes: Sequence[GraphNode],
    chains: Mapping[str, Sequence[int]],
    sources: Iterable[str],
    kernels: Iterable[str],
) -> str:
    """One graph as SVG; inputs and outputs of the part as small boxes of their own."""
    writer = {tensor: node.name for node in nodes for tensor in node.outputs if tensor}
    read = {tensor for node in nodes for tensor in node.inputs}
    ends = {f"in:{t}": t for t in sorted(sources) if t in read and t not in writer}
    ends |= {f"out:{t}": t for t in writer if t not in read}
    labels = {node.name: _labels(node, node.name in set(kernels)) for node in nodes}
    labels |= {key: (_short(tensor), "") for key, tensor in ends.items()}
    widths = {
        key: min(WIDE, max(NARROW, PADDING + CHARACTER * max(len(big), 0.86 * len(small))))
        for key, (big, small) in labels.items()
    }
    edges = [
        (writer.get(t, f"in:{t}"), node.name) for node in nodes for t in node.inputs if t in writer or f"in:{t}" in ends
    ]
    edges += [(writer[tensor], key) for key, tensor in ends.items() if key.startswith("out:")]
    found = layout(widths, edges)
    drawn = [f'<path class="edge" d="{_curve(route)}"/>' for route in found.routes.values()]
    for key, (x, y) in found.centres.items():
        big, small = labels[key]
        mine = list(dict.fromkeys(chains.get(key, ())))
        kind = "end" if key in ends else "node" + (" kernel" if key in set(kernels) else "")
        hue = f"--hue:{HUES[mine[0] % len(HUES)]}" if mine else "--hue:220;--chroma:0%"
        left, top, width = x - widths[key] / 2, y - HEIGHT / 2, widths[key]
        height: float = HEIGHT
        if key in ends:  # where its only line begins or ends
            height, top = END, y + HEIGHT / 2 - END if key.startswith("in:") else top
        middle = top + height / 2
        text = f'<text x="{x:.1f}" y="{middle - 3 if small else middle + 4:.1f}">{escape(big)}</text>' + (
            f'<text class="small" x="{x:.1f}" y="{middle + 13:.1f}">{escape(small)}</text>' if small else ""
        )
        full = ends.get(key, key)
        focus = ' tabindex="0" role="button"' if mine else ""
        drawn.append(
            f'<g class="{kind}" data-chains="{" ".join(map(str, mine))}" data-name="{escape(full, quote=True)}"'
            f' style="{hue}"{focus}><title>{escape(full)}</title>'
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height}" rx="7"/>'
            + (
                f'<rect class="stripe" x="{left:.1f}" y="{top:.1f}" width="6" height="{height}" rx="3"/>'
                if mine
                else ""
            )
            + f"{text}</g>"
        )
    across, down = found.width + 2 * MARGIN, found.height + 2 * MARGIN
    return (
        f'<figure><figcaption>{title}<small>{len(nodes)} nodes</small><span class="zoom">'
        '<button type="button" data-zoom="out" title="smaller">−</button>'
        '<button type="button" data-zoom="fit" title="all of it">fit</button>'
        '<button type="button" data-zoom="in" title="larger">+</button></span></figcaption>'
        f'<div class="canvas"><svg viewBox="{-MARGIN} {-MARGIN} {across:.0f} {down:.0f}" width="{across:.0f}"'
        f' height="{down:.0f}" data-width="{across:.0f}" data-height="{down:.0f}" role="img"'
        f' aria-label="graph {title}">{"".join(drawn)}</svg></div></figure>'
    )


def _labels(node: GraphNode, kernel: bool) -> tuple[str, str]:
    return ("kernel" if kernel else node.operator), _short(node.name)


def _short(name: str) -> str:
    """A name that fits into a node: its end tells most."""
    name = re.sub(r"^egraph_opt/\d+/(.+)/[^/]+$", r"\1", name)
    return name if len(name) <= 30 else f"…{name[-29:]}"


def _curve(points: Sequence[tuple[float, float]]) -> str:
    (x, y), *rest = points
    path = f"M{x:.1f},{y + HEIGHT / 2:.1f}"
    previous = (x, y + HEIGHT / 2)
    for position, (nx, ny) in enumerate(rest):
        last = position == len(rest) - 1
        top = ny - HEIGHT / 2
        middle = (previous[1] + top) / 2
        path += f" C{previous[0]:.1f},{middle:.1f} {nx:.1f},{middle:.1f} {nx:.1f},{top:.1f}"
        previous = (nx, top if last else ny + HEIGHT / 2)
        if not last:
            path += f" L{nx:.1f},{previous[1]:.1f}"
    return path


def _row(part: Part, position: int) -> str:
    chain = part.chains[position]
    operators = {node.name: node.operator for node in part.before}
    made = [step.operator for step in part.steps if step.name in chain.plan and step.chain == position]
    was = " + ".join(operators.get(name, name) for name in chain.nodes) or chain.tensor
    steps = len(chain.steps)
    return (
        f'<li><button type="button" data-chain="{position}" style="--hue:{HUES[position % len(HUES)]}">'
        f"<b>{escape(was)}</b><i>→ {escape(' + '.join(made) or 'the same')}</i>"
        f"<small>{escape(_short(chain.tensor))} · {steps} step{'s' if steps != 1 else ''}</small></button></li>"
    )


def _chain(part: Part, programs: Programs, position: int) -> str:
    chain = part.chains[position]
    stages = programs.stages(chain)
    steps = [step for step in part.steps if step.chain == position]
    was = ", ".join(f"<code>{escape(name)}</code>" for name in chain.nodes) or "nothing of its own"
    now = ", ".join(f"<code>{escape(name)}</code>" for step in steps for name in step.nodes) or "nothing of its own"
    return (
        f'<section class="chain" data-chain="{position}" hidden><h2>{escape(chain.tensor)}</h2>'
        f"<p class='from'>from {was}<br>to {now}</p><h3>Why this one</h3>{_costs(steps, part.unit)}"
        f"<h3>By which rules</h3>{_stages(stages)}</section>"
    )


def _stages(stages: Sequence[Stage]) -> str:
    first = f'<li class="original"><h4>The original</h4><pre>{_lines(stages[0].lines)}</pre></li>'
    if len(stages) == 1:
        first = f'<li class="original"><h4>As in the original</h4><pre>{_lines(stages[0].lines)}</pre></li>'
    items = [first]
    for stage in stages[1:]:
        step = stage.step
        assert step is not None
        way = '<span class="way">from right to left</span>' if step.backwards else ""
        group = f'<span class="group">{escape(step.group)}</span>' if step.group else ""
        doubt = "" if step.exact else '<span class="way">only the outermost parts are on record</span>'
        because = (
            f"<details><summary>because these are equal</summary>{_stages(stage.because)}</details>"
            if stage.because
            else ""
        )
        changed = _lines(stage.gone, "gone") + _lines([line for line in stage.lines if line.changed], "new")
        whole = _lines(stage.lines)
        items.append(
            f"<li><h4>{escape(step.rule)}{group}{way}{doubt}</h4>{because}<pre>{changed}</pre>"
            f"<details><summary>the whole program</summary><pre>{whole}</pre></details></li>"
        )
    return f'<ol class="stages">{"".join(items)}</ol>'


def _lines(lines: Iterable[Line], kind: str = "") -> str:
    return "".join(
        f'<span class="line {kind or ("new" if line.changed else "")}"><b>{escape(line.name)}</b> = '
        f"{_marked(line.text)}</span>"
        for line in lines
    )


def _marked(text: str) -> str:
    return escape(text).replace(OPEN, "<mark>").replace(CLOSE, "</mark>")


def _costs(steps: Sequence[PlanStep], unit: str) -> str:
    if not steps:
        return "<p>It costs nothing: another step or an input holds it already.</p>"
    return "".join(_cost_table(step, unit) for step in steps)


def _cost_table(step: PlanStep, unit: str) -> str:
    options = [step.chosen, *step.runners_up]
    most = max((option.total for option in options), default=0.0) or 1.0
    rows = "".join(_option(option, most, unit, chosen=number == 0) for number, option in enumerate(options))
    names = ", ".join(f"<code>{escape(name)}</code>" for name in step.nodes) or "no node"
    return (
        f"<table><caption><b>{escape(step.operator)}</b> {names}<span>{escape(step.why)}</span></caption>"
        "<thead><tr><th>way</th><th>alone</th><th>with all it needs</th><th></th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _option(option: Option, most: float, unit: str, *, chosen: bool) -> str:
    share = 100 * option.total / most
    return (
        f'<tr class="{"chosen" if chosen else ""}"><td><code>{escape(option.text)}</code></td>'
        f'<td class="number">{quantity(option.cost - option.charge, unit)}'
        f"<small>{escape(origin(option.source, option.charge, unit))}</small></td>"
        f'<td class="number">{quantity(option.total, unit)}</td>'
        f'<td class="bar"><i style="width:{share:.1f}%"></i></td></tr>'
    )
