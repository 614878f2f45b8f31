"""What a run leaves for those who check it: manifest, reporting checklists, and a table of who is in the data."""
