"""Trio tasks of the daemon; read ``run.py`` first."""
