"""Deployment: stage, switch, run commands, probe, and roll back on failure."""
