"""Measurements, by folders: bench/README.md says what each is. From the root: `python -m bench.speed.paired`."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
