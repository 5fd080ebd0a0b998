"""Rule packs that misbehave, as the files a user would name."""

from pathlib import Path

HEAD = """
import os
from egraph_opt.egraph.language import *
from egraph_opt.ir import maps
from egraph_opt.packs import Pack

@rule_group
def GROUP(x: TensorVar, y: TensorVar, b: BufferVar, m: MapVar, k: IntVar, f: TextVar):
    "A test."
"""
# Every pack: the function its rule calls, the rule's body. All of them fire on `relu(x @ w) + x`.
RULE = 'yield becomes("RULE", apply("relu", x), apply("relu", x.view(each(function, x.extents).map(0))))'
BODIES = {
    "raises": ("raise ValueError('boom')", RULE),
    "loops": ("while True: pass", RULE),
    "recurses": ("return function(extents)", RULE),
    "exits": ("os._exit(3)", RULE),
    "aborts": ("os.abort()", RULE),
    "leaves": ("raise SystemExit", RULE),
    "number": ("return 7", RULE),
    "short": ("return [()]", RULE),
    "text": ("return [('no map',)]", RULE),
    "huge": (
        "return [(2**70,)]",
        'yield becomes("RULE", apply("relu", x), apply("relu", x).softmax(each(function, x.extents).integer(0)))',
    ),
    "misshapen": ("return [(maps.identity((*extents, 2)),)]", RULE),
    "resizes": (
        "return [((*extents, 2),)]",
        'yield becomes("RULE", apply("relu", x), fill(0, each(function, x.extents).extents(0)))',
    ),
    "lies": ("return [(maps.identity(extents),)]", 'yield becomes("RULE", apply("relu", x), x)'),
    "errs": ("return []", 'yield becomes("RULE", apply("relu", x) + y, x + y)'),
    "grows": (
        "return [(str(i), str(-i), extents) for i in range(3000)]",
        """t = each(function, x.extents)
    zero = fill(t.text(0), t.extents(2)) + fill(t.text(1), t.extents(2))
    yield becomes("RULE", apply("relu", x), apply("relu", x) + zero)""",
    ),
    "honest": ("return [(maps.identity(extents),)]", RULE),
}


def write(folder: Path, kind: str, name: str | None = None) -> Path:
    """The file of a pack of one kind; its one rule is named after it."""
    name = name or kind
    function, body = BODIES[kind]
    text = HEAD.replace("GROUP", f"{name}_group") + f"    {body.replace('RULE', f'{name}-rule')}\n"
    text = text.replace("@rule_group", f"def function(extents):\n    {function}\n\n@rule_group")
    path = folder / f"{name}.py"
    path.write_text(text)
    return path
