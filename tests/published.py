"""Where the published runs lie. Imported before anything is collected, so it imports nothing of the package."""

from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""The folder beside this checkout with the specification and the published runs, where there is one."""
