"""Logging: handlers and formats, the rotating log file, redaction of secrets."""
