"""The control plane's database, signal stream and data directory."""
