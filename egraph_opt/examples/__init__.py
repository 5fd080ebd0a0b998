"""Runnable examples, from the first rule to an operator with its own kernel: ``python -m egraph_opt.examples.NAME``."""
