"""How the control plane proves to a CA that names are the operator's: by DNS, by a command, or by HTTP."""
