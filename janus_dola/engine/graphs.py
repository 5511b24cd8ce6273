"""The passes of a decoder as CUDA graphs, one for each length that attention looks at: one launch a pass."""

from collections.abc import Sequence

import torch

from janus_dola.engine.decode import Decoder

_WARM_UPS = 2


def capture(decoder: Decoder, visible_lengths: Sequence[int]) -> None:
    """Captures passes, which the decoder replays from then on; all slots must be empty.

    Raises:
        RuntimeError: something in a pass cannot be captured.
    """
    pool = torch.cuda.graph_pool_handle()  # graphs run one after the other and share their scratch memory
    with torch.cuda.device(decoder.parts.device):
        # All lengths are warmed up first: compiling and tuning must not happen during a capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            decoder.try_passes([visible for visible in visible_lengths for _ in range(_WARM_UPS)])
        torch.cuda.current_stream().wait_stream(stream)
        for visible in visible_lengths:
            graph = torch.cuda.CUDAGraph()
            if decoder.generator is not None:
                graph.register_generator_state(decoder.generator)
            with torch.cuda.graph(graph, pool=pool):
                decoder.step(visible)
            decoder.graphs[visible] = graph
