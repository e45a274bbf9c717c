"""Files in the published format, read into rows and a record."""
