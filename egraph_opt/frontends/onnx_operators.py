"""The catalogue of operators the algebra knows, and how one node is encoded."""

from __future__ import annotations

from onnx import NodeProto

from egraph_opt.errors import EgraphOptError
from egraph_opt.frontends.onnx_context import Declined, FreshConstants, NodeContext, OperatorEncoding
from egraph_opt.frontends.onnx_contractions import CONTRACTION_OPERATORS
from egraph_opt.frontends.onnx_model import FLOAT, LoadedModel, opset_of, standard
from egraph_opt.frontends.onnx_normalization import NORMALIZATION_OPERATORS
from egraph_opt.frontends.onnx_pointwise import POINTWISE_OPERATORS, of_function
from egraph_opt.frontends.onnx_views import VIEW_OPERATORS
from egraph_opt.frontends.onnx_windows import WINDOW_OPERATORS
from egraph_opt.ir import extensions
from egraph_opt.ir.terms import Tensor

OPERATORS: dict[str, OperatorEncoding] = {
    encoding.op_type: encoding
    for encoding in (
        *WINDOW_OPERATORS,
        *CONTRACTION_OPERATORS,
        *NORMALIZATION_OPERATORS,
        *POINTWISE_OPERATORS,
        *VIEW_OPERATORS,
    )
}

# Operators that only move elements, and those with work worth optimizing by themselves.
VIEWS = frozenset(encoding.op_type for encoding in VIEW_OPERATORS)
HEAVY = frozenset(encoding.op_type for encoding in (*WINDOW_OPERATORS, *CONTRACTION_OPERATORS))


def encode(node: NodeProto, loaded: LoadedModel, fresh: FreshConstants) -> dict[str, Tensor] | None:
    """The terms of a node's results by name, or None when the node is outside the algebra."""
    terms, _ = explain(node, loaded, fresh)
    return terms


def explain(node: NodeProto, loaded: LoadedModel, fresh: FreshConstants) -> tuple[dict[str, Tensor] | None, str]:
    """Like :func:`encode`, with the reason when the node is outside the algebra."""
    domain = standard(node.domain)
    if (domain, node.op_type) in loaded.local_functions:
        return None, "it is not a standard operator"
    version = opset_of(loaded.model, domain)
    encoding = OPERATORS.get(node.op_type) if domain == "" else None
    added = extensions.function_of(domain, node.op_type)
    if added is not None and (encoding is None or version >= added.since):  # a user's word goes first
        encoding = of_function(added)
    if encoding is None:
        return None, "the operator is outside the algebra" if domain == "" else "it is not a standard operator"
    if version < encoding.since:
        return None, f"opset {version} is older than {encoding.since}"
    before = len(fresh.values)
    context = NodeContext(node, loaded.opset, loaded, fresh)
    if domain == "" and version < 6:
        context.ignore("consumed_inputs")  # a hint about memory
    try:
        found = encoding.encode(context)
        unread = context.unread_attributes()
        if unread:
            raise Declined(f"unknown attributes {', '.join(unread)}")
        named = {name: term for name, term in zip(node.output, found, strict=False) if name and term is not None}
        if any(name and name not in named and name in loaded.used for name in node.output) or not named:
            raise Declined("it has results outside the algebra")
        for name, term in named.items():
            known = loaded.type_of(name)
            if known.element not in (0, FLOAT):
                raise Declined(f"the result {name!r} is not float32")
            if known.shape is not None and known.shape != term.extents:
                raise Declined(f"the result {name!r} has other extents than inferred")
    except (Declined, EgraphOptError) as reason:
        fresh.forget_after(before)
        return None, str(reason)
    return named, ""
