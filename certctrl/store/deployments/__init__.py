"""Atomic changes of certificate generations, and of sets of files at explicit destinations."""
