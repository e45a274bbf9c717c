"""What a notebook shows of a value: HTML without scripts, whose styles stand in its elements."""
