"""The head stage of a 1B model over 4 images and 5 layers, against the same layer by layer in torch."""

import torch
from kernels.benchmark import Benchmark


class EarlyExit(Benchmark):
    """Scores of all codes without a threshold, so that all are finite and can be compared."""

    seed = 0

    def setup(self):
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        self.hidden_states = torch.randn(5, 8, 2048, device=self.device, dtype=dtype)
        weight = torch.randn(16384, 2048, device=self.device, dtype=dtype) / 45
        self.head = self.kernel.Head(torch.ones(2048, device=self.device, dtype=dtype), 1e-6, weight)
        self.dola = self.kernel.SamplingParams(
            "dola", {"log_alpha": float("-inf"), "premature": -1, "final_weight": 1.0, "premature_weight": 1.0}
        )

    def benchmark_scores(self):
        self.out = self.kernel.head_scores(self.hidden_states, self.head, self.dola).scores

    def verify_scores(self):
        return self.kernel.head_scores(self.hidden_states, self.head, self.dola, backend="reference").scores
