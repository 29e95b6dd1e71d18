"""Pages for people: plain HTML and one style sheet, no script, nothing from elsewhere."""
