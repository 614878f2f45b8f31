"""Data sets, images, report text, splits and the phantom."""
