"""A report taken apart: lines, citations, names, numbers, statements."""
