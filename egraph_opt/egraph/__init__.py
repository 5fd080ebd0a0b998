"""The e-graph: sorts, rule language, encoding, saturation and decoding. The only importer of egglog."""
