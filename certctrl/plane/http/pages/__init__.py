"""The approval page: plain HTML and one style sheet; no scripts, no external resources."""
