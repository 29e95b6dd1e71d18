"""Issuers of certificates: the built-in CA, ACME, commands and imports, behind one interface."""
