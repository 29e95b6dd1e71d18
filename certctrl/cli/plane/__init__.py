"""The `cert-ctrl plane` commands."""
