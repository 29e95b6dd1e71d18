"""Certificates of the plane: their rows, views and chains; imported and shared ones, and keys made at devices."""
