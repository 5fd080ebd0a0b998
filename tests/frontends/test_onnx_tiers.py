"""The table of operators is that of the code, and no operator is in two tiers."""

from bench.operators import PATH
from egraph_opt.frontends.onnx_tiers import document, rows

# What the contract with users' models calls the algebraic tier.
_PROMISED_NAMES = """
    Conv ConvTranspose MatMul Gemm Einsum Add Sub Mul Div Neg Abs Sqrt Reciprocal Exp Log Pow Erf Tanh Sigmoid Relu
    LeakyRelu PRelu Clip HardSwish HardSigmoid Gelu Min Max Sum Where ReduceSum ReduceMean ReduceMax ReduceMin Softmax
    LayerNormalization BatchNormalization InstanceNormalization GroupNormalization RMSNormalization MaxPool AveragePool
    LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool LRN Transpose Reshape Flatten Squeeze Unsqueeze Concat Split
    Slice Pad Expand Tile Identity Gather Dropout
"""
PROMISED = frozenset(_PROMISED_NAMES.split())


def test_the_document_is_up_to_date():
    assert PATH.read_text(encoding="utf-8") == document(), "run python -m bench.operators"


def test_what_was_promised_is_algebraic():
    tiers = {row.operator: row.tier for row in rows()}
    assert {operator for operator in PROMISED if tiers[operator] != "algebraic"} == set()


def test_every_operator_is_listed_once():
    names = [row.operator for row in rows()]
    assert len(names) == len(set(names)) > 190
