"""Tables and verdict for a terminal."""
