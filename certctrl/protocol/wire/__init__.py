"""The wire format: bytes and JSON from the control plane to model values, and back."""
