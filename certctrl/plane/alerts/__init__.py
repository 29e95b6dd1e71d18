"""Alerts of the control plane: messages by webhook and mail about what needs an operator."""
