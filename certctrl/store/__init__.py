"""Disk: plain synchronous functions. Every mutating operation goes through ``fs.Fs``."""
