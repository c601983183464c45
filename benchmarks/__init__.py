"""Speed and memory, each as a ratio within one run or as a fact without a clock."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
