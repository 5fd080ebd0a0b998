"""Optimizers that fail in one way each; functions of a module, so that worker processes find them."""

import os
import signal
import time
from pathlib import Path

import onnx
from onnx import helper, numpy_helper

from bench.backend_suite.optimizers import FILE, RejectedError


def keep(model: onnx.ModelProto, folder: Path) -> None:
    onnx.save(model, folder / FILE)


def rename_nodes(model: onnx.ModelProto, folder: Path) -> None:
    """What is unchanged all the same."""
    for i, node in enumerate(model.graph.node):
        node.name = f"node{i}"
    keep(model, folder)


def add_identity(model: onnx.ModelProto, folder: Path) -> None:
    """Another model with the same answers."""
    (node,) = model.graph.node
    wanted = node.output[0]
    node.output[0] = "inner"
    model.graph.node.append(helper.make_node("Identity", ["inner"], [wanted]))
    keep(model, folder)


def reject(model: onnx.ModelProto, folder: Path) -> None:
    raise RejectedError("not today")


def fail(model: onnx.ModelProto, folder: Path) -> None:
    raise KeyError("x")


def write_nothing(model: onnx.ModelProto, folder: Path) -> None:
    pass


def write_garbage(model: onnx.ModelProto, folder: Path) -> None:
    (folder / FILE).write_bytes(b"garbage")


def use_unknown_operator(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"
    keep(model, folder)


def undefine_input(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.node[0].input[0] = "nowhere"
    keep(model, folder)


def age(model: onnx.ModelProto, folder: Path) -> None:
    """Only the checker objects: weights that are no inputs came with IR version 4."""
    model.ir_version = 3
    keep(model, folder)


def use_kernel_nobody_has(model: onnx.ModelProto, folder: Path) -> None:
    """Only the runtime objects: the checker knows nothing of other domains."""
    model.opset_import.append(helper.make_opsetid("nobody", 1))
    model.graph.node[0].domain = "nobody"
    keep(model, folder)


def name_the_dimension(model: onnx.ModelProto, folder: Path) -> None:
    """The symbolic dimension of the output becomes another."""
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "other"
    keep(model, folder)


def fix_the_dimension(model: onnx.ModelProto, folder: Path) -> None:
    """The symbolic dimension of the input becomes a number."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    keep(model, folder)


def add_input(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))
    keep(model, folder)


def swap_outputs(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.output[0].name = "z"
    model.graph.node[0].output[0] = "z"
    keep(model, folder)


def change_weight(model: onnx.ModelProto, folder: Path) -> None:
    (weight,) = model.graph.initializer
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.001, weight.name))
    keep(model, folder)


def crash(model: onnx.ModelProto, folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(model: onnx.ModelProto, folder: Path) -> None:
    os._exit(3)


def hang(model: onnx.ModelProto, folder: Path) -> None:
    time.sleep(600)
