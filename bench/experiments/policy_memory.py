"""Measures the memory that gradients of log-probabilities take in the head: its logits in chunks, and all at once. On Linux.

python -m bench.experiments.policy_memory
"""

import re
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

from janus_dola import DoLaConfig
from janus_dola.engine import policy
from janus_dola.kernels.types import Head
from janus_dola.settings import DrawSettings

IMAGES, TOKENS, CODES, WIDTH = 4, 576, 16384, 128  # a Janus-Pro's codes, under a head that is narrow for speed
SETTINGS = {"one row": DrawSettings(1, contrast=None), "DoLa": DrawSettings(5, contrast=DoLaConfig([1]))}


def resident() -> float:
    """Returns the memory of this process in GB."""
    kilobytes = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert kilobytes is not None
    return int(kilobytes[1]) / 1e6


def peak_of(settings: DrawSettings) -> float:
    """Returns how many GB a pass forward and back takes at the most."""
    layers = settings.layers_to_read(2)
    params = settings.sampling_params(layers)
    head = Head(torch.ones(WIDTH), 1e-6, torch.randn(CODES, WIDTH).mul_(0.05).requires_grad_())
    model = SimpleNamespace(is_packed=False, device=torch.device("cpu"), head=head)
    states = torch.randn(len(layers) + 1, params.rows, IMAGES * TOKENS, WIDTH, requires_grad=True)
    tokens, most, done = torch.randint(CODES, (1, IMAGES, TOKENS)), [resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            most.append(resident())

    watching = threading.Thread(target=watch)
    watching.start()
    with patch.object(policy, "_normed", lambda *_: states):
        terms = policy.policy_of(model, [], tokens, layers, params)  # type: ignore[arg-type]
        (terms.log_probs.clamp(min=-50).mean() + terms.entropy.mean()).backward()
    done.set()
    watching.join()
    return max(most) - most[0]


def main() -> None:
    """Prints peaks over what the process held before."""
    at_once = patch.multiple(policy, _LOGITS_AT_ONCE=1 << 60, checkpoint=lambda terms, part, **_: terms(part))
    for name, settings in SETTINGS.items():
        chunks = peak_of(settings)
        with at_once:
            print(
                f"{name}, {IMAGES} images: {chunks:.2f} GB in chunks, {peak_of(settings):.2f} GB all at once",
                flush=True,
            )


if __name__ == "__main__":
    main()
