"""Whether other processors draw the recorded images: this one is told to compute as they do.

`python -m tests.janus_dola.processors` takes some minutes, and prints what differs from `recorded.npz` for each kind. The
variables are read where torch, MKL and oneDNN are loaded, so each kind is a process of its own.
"""

import json
import os
import subprocess
import sys

import torch

from janus_dola import JanusDoLa
from tests.janus_dola.recorded import PROMPTS, SEED, SETTINGS, recorded

KINDS: list[dict[str, str]] = [
    {},
    {"MKL_CBWR": "COMPATIBLE"},
    {"MKL_CBWR": "AVX2"},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
]
NAMES = ["alpha 0, T 1.0, cfg 5.0", "alpha 0, T 0.5, cfg 5.0", "alpha 0.1, T 1.0, cfg 5.0", "alpha 0.5, T 0.0, cfg 5.0"]


def difference_here() -> dict[str, float]:
    """Counts codes and layers of 20 images that are not those recorded, and gives the largest difference of a JSD."""
    mini, expected = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32"), recorded()
    total = {"codes": 0, "layers": 0, "jsd": 0.0}
    for name in NAMES:
        drawn = mini.generate(PROMPTS, seed=SEED, **SETTINGS[name])
        total["codes"] += int((drawn.tokens[:, 0] != expected[name].tokens).sum())
        total["layers"] += int((drawn.premature_layers[:, 0] != expected[name].premature_layers).sum())
        total["jsd"] = max(total["jsd"], float((drawn.jsd[:, 0] - expected[name].jsd).abs().max()))
    return total


def main() -> None:
    """Prints a line for each kind of processor and number of threads."""
    for kind in KINDS:
        for threads in ("1", "2"):
            environment = os.environ | kind | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
            command = [sys.executable, "-m", "tests.janus_dola.processors", "here"]
            printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            said = " ".join(f"{name}={value}" for name, value in kind.items()) or "as it is"
            print(f"{said}, threads {threads}: {printed.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["here"]:
        capability = torch.backends.cpu.get_cpu_capability()
        print(json.dumps({**difference_here(), "torch": capability, "threads": torch.get_num_threads()}))
    else:
        main()
