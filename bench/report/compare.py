"""`make bench-compare A.json B.json`: what got slower from A to B beyond the measured noise.

Noise of a benchmark is the spread of its rounds: the larger of both runs' interquartile ranges, and 5% at the least, since
two runs on one machine differ by more than the rounds of either.
"""

from pathlib import Path
from typing import Annotated

import typer

from bench.report import tables
from bench.report.records import Row, read

LEAST_NOISE = 0.05


def noise(before: Row, after: Row) -> float:
    """Returns the noise as a share of the median before."""
    return max(LEAST_NOISE, (before.high - before.low) / before.median, (after.high - after.low) / before.median)


def main(
    before: Annotated[Path, typer.Argument(help="A record of `make bench`.", exists=True)],
    after: Annotated[Path, typer.Argument(help="Another one.", exists=True)],
) -> None:
    """Print benchmarks of the second record that are slower than in the first; exit with 1 if there are any."""
    old, new = read(before), read(after)
    if old.device != new.device:
        raise typer.BadParameter(f"both records must be of one device, got {old.device!r} and {new.device!r}")
    known = {row.name: row for row in old.rows}
    both = [(known[row.name], row) for row in new.rows if row.name in known]
    slower = [(a, b) for a, b in both if b.median > a.median * (1 + noise(a, b))]
    print(f"{len(both)} benchmarks in both, {len(slower)} slower beyond the noise")
    if slower:
        body = [
            [b.name, tables.time(a.median), tables.time(b.median), f"{b.median / a.median:.2f} x", f"{noise(a, b):.0%}"]
            for a, b in slower
        ]
        print(tables.markdown(["benchmark", "before", "after", "ratio", "noise"], body), end="")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
