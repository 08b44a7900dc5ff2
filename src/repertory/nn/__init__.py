"""Layers with parameters that two or more systems use."""
