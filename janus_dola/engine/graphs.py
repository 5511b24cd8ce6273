"""The pass of a decoder as CUDA graphs, one for each length that attention looks at, captured when first needed."""

import torch

from janus_dola.engine.decode import Decoder

_WARM_UPS = 2


class PassGraphs:
    """Captures passes of a decoder, and replays them: one launch a pass."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._pool = torch.cuda.graph_pool_handle()  # graphs run one after the other and share their scratch memory
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def capture(self, visible_lengths: list[int]) -> None:
        """Captures a pass for each length that has none yet; all slots must be empty.

        Raises:
            RuntimeError: something in a pass cannot be captured.
        """
        missing = [visible for visible in visible_lengths if visible not in self._graphs]
        if not missing:
            return
        with torch.cuda.device(self._decoder.parts.device):
            # All lengths are warmed up first: compiling and tuning must not happen during a capture.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._decoder.try_passes([visible for visible in missing for _ in range(_WARM_UPS)])
            torch.cuda.current_stream().wait_stream(stream)
            for visible in missing:
                graph = torch.cuda.CUDAGraph()
                if self._decoder.generator is not None:
                    graph.register_generator_state(self._decoder.generator)
                with torch.cuda.graph(graph, pool=self._pool):
                    self._decoder.step(visible)
                self._graphs[visible] = graph

    def replay(self, visible: int) -> None:
        """Runs one pass."""
        self._graphs[visible].replay()
