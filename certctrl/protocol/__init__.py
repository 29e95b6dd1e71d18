"""The sans-IO core: what happened goes in, what to do next comes out; no clock, no socket, no disk, no chance."""
