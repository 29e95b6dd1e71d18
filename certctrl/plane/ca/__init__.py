"""The control plane's built-in CA."""
