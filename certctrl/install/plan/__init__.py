"""The install plan: the changes that this host needs, decided without I/O."""
