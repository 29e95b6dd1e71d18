"""Frozen values of the field: signals, plans, bundles, configuration, policy. No I/O, no behaviour."""
