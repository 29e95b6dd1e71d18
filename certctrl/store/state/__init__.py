"""State files: the session with the control plane, and what is installed on this host."""
