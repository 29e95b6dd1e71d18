"""Frozen values: signals, install plans, certificates, records, configuration and policy."""
