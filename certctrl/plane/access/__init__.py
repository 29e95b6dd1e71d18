"""Who may operate the plane: roles, named operators and their tokens."""
