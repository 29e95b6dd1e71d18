"""Probe: which certificate a live endpoint serves."""
