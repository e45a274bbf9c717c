"""The model that comes with the package."""

from pathlib import Path

BUNDLED = Path(__file__).parent / "reference_model"
"""Its folder."""
BUNDLED_ID = "layerscope/reference"
"""What runs call it."""
