"""The page: runs as one self-contained HTML file that is looked at without a network."""
