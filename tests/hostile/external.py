"""Tensors in other files, most of them where nothing may be read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.hostile.build import (
    FLOAT,
    MODEL,
    Case,
    Maker,
    branches,
    case,
    content,
    external,
    functions,
    good,
    graph,
    node,
    stolen,
)
from tests.hostile.tensors import sparse


def linked(name: str, target: str) -> Maker:
    def prepare(folder: Path) -> None:
        (folder / name).symlink_to(target)

    return prepare


def huge(folder: Path) -> None:
    with (folder / "weights.bin").open("r+b") as file:
        file.truncate(1 << 40)


def everywhere(kind: str) -> Maker:
    """External data outside the folder where loaders forget to look."""

    def make() -> onnx.ModelProto:
        model, thief = good(), stolen()
        hidden = helper.make_node("Constant", [], ["t"], value=thief)
        match kind:
            case "constant":
                model.graph.node.insert(0, hidden)
            case "subgraph":
                model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
                model.graph.node.append(branches(graph([hidden], ["t"]), "z"))
            case "weight of a subgraph":
                inner = graph([node("Identity", "t", "u")], ["u"])
                inner.initializer.append(thief)
                model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
                model.graph.node.append(branches(inner, "z"))
            case "function":
                model = functions({"main": ["Neg"]})
                model.functions[0].node.insert(0, hidden)
            case "sparse":
                model = sparse([0, 1], [3])
                model.graph.sparse_initializer[0].values.CopyFrom(stolen("w"))
            case "sparse indices":
                model = sparse([0, 1], [3])
                model.graph.sparse_initializer[0].indices.CopyFrom(thief)
            case "sparse constant":
                values = sparse([0, 1], [3]).graph.sparse_initializer[0]
                values.values.CopyFrom(thief)
                model.graph.node.insert(0, helper.make_node("Constant", [], ["t"], sparse_value=values))
            case "training":
                model.training_info.add().algorithm.initializer.append(thief)
        return model

    return content(make)


def content_in_one_place(folder: Path) -> None:
    """Two weights that overlap in their file."""
    external({})(folder)
    model = onnx.load(folder / MODEL, load_external_data=False)
    model.graph.initializer.append(model.graph.initializer[0])
    model.graph.initializer[1].name = "v"
    del model.graph.initializer[1].external_data[:]
    for key, text in {"location": "weights.bin", "offset": "4", "length": "48"}.items():
        model.graph.initializer[1].external_data.add(key=key, value=text)
    model.graph.node.append(node("Add", "w v", "z"))
    model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, [4, 3]))
    (folder / MODEL).write_bytes(model.SerializeToString())


OUTSIDE = "is not inside the model's folder"
EXTERNAL = (
    case("data beside the model", 0, "written", external({})),
    case("data of the model's own file", (0, 3), "", external({"location": MODEL})),
    case("data above the folder", 3, OUTSIDE, external({"location": "../outside/secret.bin"})),
    case("data above a folder", 3, OUTSIDE, external({"location": "sub/../../outside/secret.bin"})),
    case("data above the folder, written otherwise", 3, "", external({"location": "..\\outside\\secret.bin"})),
    case("data at an absolute place", 3, OUTSIDE, external({"location": "/etc/passwd"})),
    case("data at a place of the system", 3, OUTSIDE, external({"location": "/proc/self/environ"})),
    case("data at an address", 3, "cannot read", external({"location": "file:///etc/passwd"})),
    case("data at home", 3, "cannot read", external({"location": "~/weights.bin"})),
    case("data through a link", 3, OUTSIDE, external({"location": "link"}, linked("link", "../outside/secret.bin"))),
    case(
        "data through a linked folder",
        3,
        OUTSIDE,
        external({"location": "link/secret.bin"}, linked("link", "../outside")),
    ),
    case("data through a link to itself", 3, "", external({"location": "link"}, linked("link", "link"))),
    case("data on a device", 3, OUTSIDE, external({"location": "zero", "offset": "0"}, linked("zero", "/dev/zero"))),
    case("data in a pipe", 3, "cannot read", external({"location": "pipe"}, lambda f: os.mkfifo(f / "pipe"))),
    case("data in a folder", 3, "cannot read", external({"location": "sub"}, lambda f: (f / "sub").mkdir())),
    case("data in the folder itself", 3, "", external({"location": "."})),
    case("data that is missing", 3, "cannot read", external({"location": "nowhere.bin"})),
    case("data without location", 3, OUTSIDE, external({"location": "absent"})),
    case("data at an empty location", 3, OUTSIDE, external({"location": ""})),
    case("data at a location with a zero byte", 3, "", external({"location": "we\0ights.bin"})),
    case("data at a location of a megabyte", 3, "", external({"location": "w" * 1_000_000})),
    case("data at a location in lines", 3, "", external({"location": "a\n\x1b[31mb"})),
    case("data beyond the file", 3, "which has 64", external({"offset": "40"})),
    case("data at a negative offset", 3, "which has 64", external({"offset": "-16"})),
    case("data at an offset beyond all bounds", 3, "", external({"offset": str(2**64)})),
    case("data at an offset of 5,000 digits", 3, "", external({"offset": "9" * 5000})),
    case("data at an offset that is no number", 3, "", external({"offset": "0x10"})),
    case("data of negative length", 3, "", external({"length": "-48"})),
    case("data of another length", 3, "", external({"length": "40"})),
    case("data of a length beyond all bounds", 3, "", external({"length": str(2**62)})),
    case("data of two tensors in one place", 0, "written", content_in_one_place),
    case("data of no length", 0, "written", external({"length": "absent"})),
    case("data of a terabyte", (3, 5), "", external({"length": str(1 << 40)}, huge, (1 << 19, 1 << 19))),
    case(
        "data of a terabyte, length unknown",
        (3, 5),
        "",
        external({"length": "absent", "offset": "0"}, huge, (1 << 19, 1 << 19)),
    ),
    case("data in a constant", 3, OUTSIDE, everywhere("constant")),
    case("data in a subgraph", 3, OUTSIDE, everywhere("subgraph")),
    case("data in a weight of a subgraph", 3, OUTSIDE, everywhere("weight of a subgraph")),
    case("data in a function", 3, OUTSIDE, everywhere("function")),
    case("data in a sparse tensor", 3, OUTSIDE, everywhere("sparse")),
    case("data in indices of a sparse tensor", 3, OUTSIDE, everywhere("sparse indices")),
    case("data in a sparse constant", 3, OUTSIDE, everywhere("sparse constant")),
    case("data in training information", (0, 3), "", everywhere("training")),
)

CASES: tuple[Case, ...] = EXTERNAL
