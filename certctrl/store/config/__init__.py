"""The operator's files: defaults, structure, rules, overrides from the environment."""
