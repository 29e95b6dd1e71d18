"""The pipeline from fetched material to a served certificate; read ``installer.py`` first."""
