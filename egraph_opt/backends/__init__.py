"""Operator libraries and code generators. The only importer of onnxruntime and tvm."""
