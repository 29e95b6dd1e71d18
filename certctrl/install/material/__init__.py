"""Certificate material: opened, checked, converted to file formats."""
