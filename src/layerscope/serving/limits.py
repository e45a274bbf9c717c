"""How much one request may ask for; the sentences that refuse more name these numbers."""

MOST_CHARACTERS = 100_000
"""Of a text, and of a system message."""
MOST_WORDS = 16
"""Words that one look follows, the answer not counted."""
LONGEST_WORD = 200
"""Characters of a word that is followed, of a name, and of layers or positions in words."""
MOST_TOP = 200
"""Tokens that are listed at every layer and position."""
MOST_LISTED = 1_000_000
"""Tokens that are listed in one look altogether."""
LONGEST_WAIT_S = 120
"""How long a request may wait for its look."""
LONGEST_NAME = 64
"""Characters of a session's name."""
