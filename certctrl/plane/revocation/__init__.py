"""Revocation: at the CA that issued a certificate, and in the lists of the built-in CA."""
