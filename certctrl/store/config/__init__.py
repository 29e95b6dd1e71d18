"""The operator's configuration files: defaults, structure, rules, overrides from the environment."""
