"""Two models of one shape side by side."""
