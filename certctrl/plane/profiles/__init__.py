"""Profiles: install items for all devices with certain tags."""
