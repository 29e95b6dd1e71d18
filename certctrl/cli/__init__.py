"""The command line: parse, one call, print, exit status. Only this package imports Typer."""
