"""Measures the memory that gradients of log-probabilities take: the head's logits in chunks, and all at once. On Linux.

python -m bench.experiments.policy_memory
"""

import ctypes
import gc
import re
from pathlib import Path
from unittest.mock import patch

import torch

from bench.speed.widened import REAL_SIDE, widened
from janus_dola import DoLaConfig
from janus_dola.engine import policy
from janus_dola.settings import DrawSettings

SETTINGS = {
    "DoLa": DrawSettings(5, contrast=DoLaConfig([1])),
    "one row": DrawSettings(1, contrast=None),
}
IMAGES, BLOCKS = 2, 2


def resident(what: str) -> float:
    """Returns a size of this process, such as VmRSS or its peak VmHWM, in GB."""
    kilobytes = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert kilobytes is not None
    return int(kilobytes[1]) / 1e6


def main() -> None:
    """Prints peaks over what the process held before."""
    pipe = widened("1B", BLOCKS, REAL_SIDE)
    pipe.model.requires_grad_(True)
    tokens = torch.randint(16384, (1, IMAGES, REAL_SIDE**2), generator=torch.Generator().manual_seed(0))
    at_once = (
        patch.object(policy, "_LOGITS_AT_ONCE", 1 << 60),
        patch.object(policy, "checkpoint", lambda terms, part, **_: terms(part)),
    )
    print(f"1B shape, {BLOCKS} blocks, float32, {IMAGES} images of {REAL_SIDE**2} codes; GB over the weights")
    for name, settings in SETTINGS.items():
        peaks = []
        for patches in ((), at_once):
            pipe.model.zero_grad()
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            for each in patches:
                each.start()
            terms = pipe.policy("a red circle", tokens, settings)
            (terms.log_probs.mean() + terms.entropy.mean()).backward()
            del terms
            for each in patches:
                each.stop()
            peaks.append(resident("VmHWM") - before)
        print(f"{name}: {peaks[0]:.2f} in chunks, {peaks[1]:.2f} all at once", flush=True)


if __name__ == "__main__":
    main()
