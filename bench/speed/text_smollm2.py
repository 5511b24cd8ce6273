"""What DoLa costs in text on a CPU: SmolLM2-135M-Instruct decoded greedily, plain, with DoLa, with transformers' old DoLa.

One thread; the seconds are those of the process, so that other programs on the machine count little. In each round all
methods run one after the other, in an order that turns; a ratio is the median of the rounds' ratios to plain decoding in the
same round. Writes bench/results/text_smollm2.json and the table in docs/text.md.
"""

import json
import os
import statistics
import time
from typing import Annotated

import torch
import transformers
import typer

from bench import RESULTS, ROOT
from bench.report.tables import markdown
from bench.speed.conftest import made_with
from bench.speed.peer_legacy_dola import legacy_generate
from janus_dola.images.whole_files import write_whole
from janus_dola.text import dola_generate
from tests.janus_dola.smollm2 import INSTALL, PROMPTS, folder, load_smollm2

FILE, PAGE = RESULTS / "text_smollm2.json", ROOT / "docs" / "text.md"
MARKERS = ("<!-- costs -->\n", "<!-- end of costs -->\n")
PLAIN = "plain"
METHODS = {
    PLAIN: {},
    "DoLa": {"custom_generate": dola_generate, "dola_layers": "high"},
    "legacy": {"custom_generate": legacy_generate, "dola_layers": "high"},
}


def seconds(model, inputs, tokens: int, **method) -> float:
    """Measures seconds of the process for `tokens` tokens after the first, which the prompt's pass decides."""
    taken = []
    for count in (1, tokens + 1):
        started = time.process_time()
        model.generate(**inputs, do_sample=False, max_new_tokens=count, min_new_tokens=count, **method)
        taken.append(time.process_time() - started)
    return taken[1] - taken[0]


def measure(model, tokenizer, batch: int, tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Returns milliseconds per step and the ratio to plain decoding, medians over the rounds, for each method."""
    inputs = tokenizer(list(PROMPTS[:batch]), return_tensors="pt", padding=True)
    for method in METHODS.values():
        seconds(model, inputs, 2, **method)
    names, times = list(METHODS), {name: [] for name in METHODS}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(seconds(model, inputs, tokens, **METHODS[name]))
        print(batch, {name: round(values[-1] / tokens * 1000, 1) for name, values in times.items()}, flush=True)
    return {
        name: {
            "milliseconds": statistics.median(values) / tokens * 1000,
            "ratio": statistics.median(a / b for a, b in zip(values, times[PLAIN], strict=True)),
        }
        for name, values in times.items()
    }


def table(record: dict) -> str:
    """Formats the results in Markdown, with what they were made with."""
    rows = [
        [
            f"{batch} at once",
            *(f"{values['milliseconds']:.0f} ms" for values in methods.values()),
            *(f"{methods[name]['ratio']:.2f} x" for name in ("DoLa", "legacy")),
        ]
        for batch, methods in record["batches"].items()
    ]
    header = ["", "plain", "DoLa", "legacy", "DoLa over plain", "legacy over plain"]
    return (
        f"Processor time of a step: {record['tokens']} tokens of SmolLM2-135M-Instruct (30 blocks, 49152 words), greedy, "
        f'float32, `dola_layers="high"` (8 layers), one thread. Medians of {record["rounds"]} rounds, all in turn in each,\n'
        f"with torch {record['torch']} and transformers {record['transformers']}, on a machine ({record['device']}) that "
        f"{record['machine']}:\n\n"
        f"{markdown(header, rows)}\n"
    )


def main(
    tokens: Annotated[int, typer.Option(help="Tokens a run.")] = 16,
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 7,
) -> None:
    """Measure and write."""
    there = folder()
    if there is None:
        raise SystemExit(f"needs the weights of SmolLM2: {INSTALL}")
    torch.set_num_threads(1)
    model, tokenizer = load_smollm2(there)
    before = os.getloadavg()[0]
    batches = {batch: measure(model, tokenizer, batch, tokens, rounds) for batch in (1, 4)}
    load = max(before, os.getloadavg()[0])
    machine = "did nothing else" if load < 1.3 else f"also ran other work (load {load:.1f} on {os.cpu_count()} cores)"
    record = {
        "tokens": tokens, "rounds": rounds, "torch": torch.__version__, "transformers": transformers.__version__,
        "device": made_with("cpu")["device"], "machine": machine, "batches": batches,
    }  # fmt: skip
    write_whole(FILE, (json.dumps(record, indent=2) + "\n").encode())
    before_table, rest = PAGE.read_text(encoding="utf-8").split(MARKERS[0])
    write_whole(PAGE, (before_table + MARKERS[0] + table(record) + MARKERS[1] + rest.split(MARKERS[1])[1]).encode())
    print(table(record))


if __name__ == "__main__":
    typer.run(main)
