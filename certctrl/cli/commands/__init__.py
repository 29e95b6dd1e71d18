"""One module per command; ``app.py`` imports only the requested one."""
