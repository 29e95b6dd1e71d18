"""Prove control of names to a CA: over DNS, HTTP or TLS, or with a program."""
