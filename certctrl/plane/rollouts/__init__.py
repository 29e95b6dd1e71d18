"""Rollouts: changes that reach many devices in waves, each released by the proof of the one before."""
