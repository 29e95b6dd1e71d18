"""Find certificates in use on a host, and propose the items that would take them over. Changes nothing."""
