"""Compiles all kernels for GPUs that are not at hand, and forecasts from them; nothing is run on a GPU.

    python -m bench.forecast    # `make static-report`

Writes bench/results/kernels.md, and prints the forecasts, whose numbers stand in bench/findings.md.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import chain, product
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from bench import RESULTS
from bench.forecast import head_stage, static_report, whole_pass
from janus_dola.images.whole_files import write_whole
from janus_dola.kernels.gpu.launch import TABLE

PAGE = RESULTS / "kernels.md"


def main(
    representative: Annotated[
        bool, typer.Option(help="Compile some configurations only, and forecast nothing.")
    ] = False,
    record: Annotated[Path | None, typer.Option(help="Write everything as JSON to this file, and no page.")] = None,
) -> None:
    """Compile the kernels for each GPU generation, and report on the result."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    cases = static_report.representative(table)
    if not representative:
        cases = list(chain.from_iterable(static_report.cases(name, table[name]) for name in static_report.TARGETS))
    stages = [] if representative else list(product(("1B", "7B"), (1, 4, 16)))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = list(tqdm(pool.map(static_report.build, cases), total=len(cases), unit="kernel"))
        launches = (
            list(chain.from_iterable(pool.map(head_stage.launches, *zip(*stages, strict=True)))) if stages else []
        )
        steps = list(pool.map(whole_pass.step, *zip(*whole_pass.CASES, strict=True))) if stages else []
    if record is not None:
        everything = {
            "kernels": rows,
            "stage": [asdict(launch) for launch in launches],
            "passes": [asdict(step) | {"seconds": step.seconds} for step in steps],
        }
        write_whole(record, json.dumps(everything).encode())
        return
    write_whole(PAGE, static_report.markdown(rows).encode())
    print(f"{len(rows)} configurations: {PAGE}\n\n{head_stage.markdown(launches)}\n{whole_pass.markdown(steps)}")


if __name__ == "__main__":
    typer.run(main)
