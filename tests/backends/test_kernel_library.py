"""Generated kernels as onnxruntime custom operators, end to end."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from egraph_opt.backends import tvm_build
from egraph_opt.errors import BackendMissing
from egraph_opt.ir.terms import Apply, Read, Reduce, Softmax, Source, leaves
from tests.backends.kernel_helpers import evaluate


def kernel(body):
    return tvm_build.Kernel(body, tuple(leaves(body)))


X = Read(Source("in0", (512, 501)))
Y = Read(Source("in1", (512, 501)))
KERNELS = [kernel(Apply("relu", (Apply("add", (X, Y)),))), kernel(Softmax(X, 1)), kernel(Reduce("sum", X, 1))]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tvm_build.build_library(KERNELS, tmp_path_factory.mktemp("kernels") / "kernels.so")


def session(library, chosen, dims):
    names = [source.name for source in chosen.inputs]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in names]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    node = helper.make_node(chosen.name, names, ["out"], domain=tvm_build.DOMAIN)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(tvm_build.DOMAIN, 1)]
    graph = helper.make_graph([node], "g", inputs, [output])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("chosen", KERNELS, ids=["pointwise", "softmax", "sum"])
def test_operators_compute_the_same_many_times(library, chosen):
    run = session(library, chosen, [512, 501])
    for seed in range(100):
        random = np.random.default_rng(seed)
        arrays = {s.name: random.standard_normal(s.extents).astype(np.float32) for s in chosen.inputs}
        found = run.run(None, arrays)[0]
        if seed % 20 == 0:
            np.testing.assert_allclose(found, evaluate(chosen.body, arrays), rtol=1e-5, atol=1e-5)


def test_wrong_sizes_are_reported(library):
    run = session(library, KERNELS[1], ["n", "m"])
    with pytest.raises(Exception, match="input 0 has 6 elements, but was compiled for 256512"):
        run.run(None, {"in0": np.zeros((2, 3), np.float32)})


def test_missing_compiler_is_named(tmp_path):
    with pytest.raises(BackendMissing, match="no-such-compiler"):
        tvm_build.build_library(KERNELS, tmp_path / "k.so", compiler="no-such-compiler")
