"""Certificates: rows, views and chains; imports, templates, and keys made at devices."""
