"""The protocol without I/O: events go in, steps come out. Time and randomness are arguments."""
