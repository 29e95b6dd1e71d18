"""The command line: parse, make one call, print, exit. Only this package imports Typer."""
