"""Experiments: one file each, a frozen configuration and `main(config) -> dict` whose result is JSON."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
