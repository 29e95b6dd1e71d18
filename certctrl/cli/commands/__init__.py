"""One module per command; ``app.py`` imports the one that is asked for and no other."""
