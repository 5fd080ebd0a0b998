"""Benchmarks: the models of the literature, built without downloads, and the command that times them."""
