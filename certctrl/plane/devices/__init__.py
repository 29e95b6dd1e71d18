"""Devices of the plane: registration, sessions, and what they report."""
