"""Names that mean something elsewhere, and outputs that cannot or must not be written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.hostile.build import MODEL, Case, case, content, good, node, renamed, spoiled

NAMES = {
    "lines": "a\nb\r\nc\x0b\x85\u2028d",
    "a zero byte": "a\0b",
    "quotes": '"\'`\\"',
    "egglog": '") (rewrite (MatMul a b) a) (run 1000) (let x "',
    "lisp": '(lambda () #.(delete-file "model.onnx"))',
    "C": '*/ "; system("touch pwned"); /* \\',
    "the preprocessor": '\n#include "/etc/passwd"\n',
    "formats": "%s%n%99999999d{0}{x.__class__}${HOME}",
    "the shell": "$(touch pwned); `touch pwned` | touch pwned &&",
    "Python": "__import__('os').mkdir('pwned')",
    "markup": "<script>alert(1)</script><!--",
    "terminals": "\x1b]0;title\x07\x1b[2J\x1b[31m",
    "right to left": "abc\u202egnp.exe\u2066",
    "nothing to see": "\u200b\u200d\ufeff",
    "letters that look alike": "ﬁ\u212b\u00c5\u0041\u030a",
    "other planes": "😀\U0010ffff\U000e0001",
    "paths": "../../../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "our names": "egraph_opt/0/r0s0",
    "our prefix": "r0s0",
    "our kernels": "k_0",
    "numbers": "0",
    "a space": " ",
    "a comma": ",",
    "a megabyte": "n" * 1_000_000,
}


def arguments(*words: str, prepare: Any = None) -> Any:
    """A good model, and further arguments in which FOLDER stands for its folder."""

    def make(folder: Path) -> list[str]:
        path = folder / MODEL
        path.write_bytes(good().SerializeToString())
        if prepare is not None:
            prepare(folder)
        return [str(path), *(word.replace("FOLDER", str(folder)) for word in words)]

    return make


def called(name: str) -> Any:
    """A good model in a file of this name."""

    def make(folder: Path) -> list[str]:
        (folder / name).write_bytes(good().SerializeToString())
        return [f"{folder}/{name}"]

    return make


def link(name: str, target: str) -> Any:
    return lambda folder: (folder / name).symlink_to(target)


OUTPUTS = (
    case(
        "output that is a folder",
        2,
        "is a folder",
        arguments("-o", "FOLDER/o.onnx", prepare=lambda f: (f / "o.onnx").mkdir()),
    ),
    case("output in no folder", 2, "does not exist", arguments("-o", "FOLDER/nowhere/o.onnx")),
    case("output below a file", 2, "does not exist", arguments("-o", f"FOLDER/{MODEL}/o.onnx")),
    case(
        "output in a pipe",
        2,
        "is not a regular file",
        arguments("-o", "FOLDER/pipe", prepare=lambda f: os.mkfifo(f / "pipe")),
    ),
    case("output where nobody writes", 2, "", arguments("-o", "/proc/o.onnx")),
    case("output that is the input", 0, "written", arguments("-o", f"FOLDER/{MODEL}")),
    case("output that links to the input", 2, "is the input", arguments(prepare=link("model.opt.onnx", MODEL))),
    case(
        "output that links nowhere",
        0,
        "written",
        arguments("-o", "FOLDER/o.onnx", prepare=link("o.onnx", "elsewhere.onnx")),
    ),
    case(
        "output that links to itself", 0, "written", arguments("-o", "FOLDER/o.onnx", prepare=link("o.onnx", "o.onnx"))
    ),
    case(
        "library that is the input",
        2,
        "would replace the input",
        arguments("-o", "FOLDER/o.onnx", prepare=link("o.kernels.so", MODEL)),
    ),
    case(
        "library that is a folder",
        2,
        "is a folder",
        arguments("-o", "FOLDER/o.onnx", prepare=lambda f: (f / "o.kernels.so").mkdir()),
    ),
    case(
        "data that is a folder",
        (0, 2),
        "",
        arguments("-o", "FOLDER/o.onnx", prepare=lambda f: (f / "o.onnx.data").mkdir()),
    ),
    case("nameless output", 2, "", arguments("-o", "")),
    case("output of 300 letters", 2, "name too long", arguments("-o", "FOLDER/" + "o" * 300)),
    case("report in place of the model", 2, "would replace", arguments("--report", f"FOLDER/{MODEL}")),
    case("report in place of the output", 2, "would replace", arguments("--report", "FOLDER/model.opt.onnx")),
    case("report in no folder", 2, "cannot be written", arguments("--report", "FOLDER/nowhere/r.json")),
    case("report in a pipe", 2, "", arguments("--report", "FOLDER/pipe", prepare=lambda f: os.mkfifo(f / "pipe"))),
    case("database that is a model", (0, 2), "", arguments("--profile-db", f"FOLDER/{MODEL}")),
    case("database that is a folder", (0, 2), "", arguments("--profile-db", "FOLDER")),
    case("file named like an option", 0, "written", called("-o.onnx")),
    case("file named in lines", 0, "written", called("a\n\x1b[31mb.onnx")),
    case("file named like a format", 0, "written", called("%s%n{0}.onnx")),
    case("file named like a command", 0, "written", called("$(touch pwned).onnx")),
    case("file named in bytes", 0, "written", called("\udcff\udcfe.onnx")),
)

TEXTS = tuple(
    case(f"names from {what}", 0, "written", content(lambda name=name: renamed(name))) for what, name in NAMES.items()
)
MESSAGES = tuple(
    case(
        f"message about {what}", 3, "which nothing defines", spoiled(lambda m: None, [node("Neg", "q", "y", name=name)])
    )
    for what, name in [*list(NAMES.items())[:3], ("a megabyte", NAMES["a megabyte"]), ("terminals", NAMES["terminals"])]
)

CASES: tuple[Case, ...] = OUTPUTS + TEXTS + MESSAGES
