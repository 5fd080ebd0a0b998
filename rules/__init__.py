"""Rewrite rules by family: equations only, no logic."""
