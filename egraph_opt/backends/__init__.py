"""Runtimes, operator libraries and code generators. The only importer of onnxruntime, openvino and tvm."""
