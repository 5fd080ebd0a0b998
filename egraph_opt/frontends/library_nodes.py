"""Nodes outside the algebra that a library call computes whole."""

from __future__ import annotations

from onnx import NodeProto

from egraph_opt.frontends.onnx_context import Declined, FreshConstants, NodeContext, require
from egraph_opt.frontends.onnx_model import LoadedModel
from egraph_opt.ir import moves, resampling
from egraph_opt.ir.library import format_attributes
from egraph_opt.ir.program import Step
from egraph_opt.ir.terms import Call, Source


def library_step(node: NodeProto, loaded: LoadedModel) -> Step | str:
    """The step that fills the node's output; in words why there is none."""
    known = _NODES.get(node.op_type) if not node.domain and ("", node.op_type) not in loaded.local_functions else None
    if known is None:
        return "no library call computes it"
    context = NodeContext(node, loaded.opset, loaded, FreshConstants(loaded.names))
    try:
        return Step(node.output[0], known(context))
    except Declined as reason:
        return str(reason)


def _resize(node: NodeContext) -> Call:
    given, result = node.input_type(0), node.loaded.type_of(node.node.output[0])
    require(given.is_algebraic and result.is_algebraic, "its extents are not all known")
    extents, sizes = given.shape or (), result.shape or ()
    mode = node.text("mode", "nearest")
    transform = "asymmetric" if node.opset < 11 else node.text("coordinate_transformation_mode", "half_pixel")
    require(mode in resampling.MODES, f"mode {mode}")
    require(transform in resampling.TRANSFORMS, f"coordinates {transform}")
    require(node.integer("antialias", 0) == 0, "antialias")
    require(node.text("keep_aspect_ratio_policy", "stretch") == "stretch", "a fixed aspect ratio")
    scales = [size / count for size, count in zip(sizes, extents, strict=True)]
    value = node.constant(1 if node.opset < 11 else 2)
    if value is not None and value.size:
        axes = [axis % len(extents) for axis in node.integer_list("axes", tuple(range(len(extents))))]
        require(value.size == len(axes), "odd scales")
        for axis, scale in zip(axes, value.ravel(), strict=True):
            scales[axis] = float(scale)
    attributes = format_attributes(
        mode=mode,
        transform=transform,
        sizes=sizes,
        scales=scales,
        cubic=node.number("cubic_coeff_a", -0.75) if mode == "cubic" else None,
        exclude_outside=node.integer("exclude_outside", 0) or None,
    )
    name = node.node.input[0]
    return Call(moves.RESIZE, attributes, (Source(name, extents, name in node.loaded.constants),), sizes)


_NODES = {"Resize": _resize}
