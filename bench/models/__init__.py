"""The benchmark models, written directly as ONNX: random seeded weights, float32, opset 17, nothing downloaded."""

from bench.models.catalogue import CATALOGUE, BenchmarkModel, find, get, names

__all__ = ["CATALOGUE", "BenchmarkModel", "find", "get", "names"]
