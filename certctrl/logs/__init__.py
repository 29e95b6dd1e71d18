"""Logging: handlers and formats, the rotated log file, redaction of secrets."""
