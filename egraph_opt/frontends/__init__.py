"""Readers and writers of model files. The only importer of onnx."""
