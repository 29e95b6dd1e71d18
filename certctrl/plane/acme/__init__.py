"""An ACME client (RFC 8555) with ARI (RFC 9773), profiles and IP identifiers (RFC 8738).

Signing, parsing and choosing are pure; ``http`` and ``client`` perform. Nothing is stored here: keys, account and
order URLs belong to the caller.
"""
