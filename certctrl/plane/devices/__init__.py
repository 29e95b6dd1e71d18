"""Devices of the plane: registration, sessions and reports."""
