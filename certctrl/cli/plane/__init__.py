"""The commands of `cert-ctrl plane`."""
