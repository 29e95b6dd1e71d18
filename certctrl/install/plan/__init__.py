"""The install plan: what has to change on this host, decided without I/O."""
