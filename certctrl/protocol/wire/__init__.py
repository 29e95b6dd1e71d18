"""The wire format: JSON from the control plane to model values, and back."""
