"""Crash-safe file operations behind one interface, `Fs`."""
