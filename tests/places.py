"""Where the files are that tests read."""

from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
# Beside the checkout; what needs it is skipped where there is none.
SHARED = Path(__file__).parents[2] / "shared"
