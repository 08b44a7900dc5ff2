"""Readers, bundled data, simulation and samplers."""
