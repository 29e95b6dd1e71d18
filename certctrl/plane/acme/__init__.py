"""An ACME client (RFC 8555) with ARI (RFC 9773), profiles and IP identifiers (RFC 8738).

Signing, parsing and choosing are pure; ``http`` and ``client`` do the I/O. Nothing is stored here: the caller keeps
keys, and account and order URLs.
"""
