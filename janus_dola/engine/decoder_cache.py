"""Decoders kept for later calls: DoLa beside the baseline, one request beside many."""

import torch

from janus_dola.engine.decoder import Decoder, DecoderKey, keys_values_shape
from janus_dola.engine.devices import has_graphs
from janus_dola.kernels.types import SamplingParams
from janus_dola.models.model import ImageModel
from janus_dola.models.weights import Weights

_KEPT = 8  # with DoLa and without, each for four numbers of slots


class DecoderCache:
    """Decoders with one buffer of keys and values, as large as the first needs: only one of them runs at a time.

    They share the memory that their graphs compute in, too.
    """

    def __init__(self, image_model: ImageModel, weights: Weights, key: DecoderKey) -> None:
        self._image_model, self._weights = image_model, weights
        numbers = keys_values_shape(weights, key).numel()
        self._buffer = torch.zeros(numbers, dtype=image_model.dtype, device=image_model.device)
        self._pool = torch.cuda.graph_pool_handle() if has_graphs(image_model.device) else None
        self._decoders: dict[DecoderKey, Decoder] = {}  # the one used last comes last

    @property
    def nbytes(self) -> int:
        """Returns the bytes for keys and values."""
        return self._buffer.nbytes

    def has_room(self, weights: Weights, key: DecoderKey) -> bool:
        """Tells whether a decoder for these weights finds room here."""
        return keys_values_shape(weights, key).numel() <= self._buffer.numel() and self._weights.lie_where(weights)

    def get(self, key: DecoderKey, params: SamplingParams) -> Decoder:
        """Returns the decoder for a key; a new one is tried out first, and the one not used for longest may go."""
        decoder = self._decoders.pop(key, None)
        if decoder is None:
            if self._decoders:
                self._buffer.zero_()  # of an image that was not finite something may be left
            decoder = Decoder(self._image_model, self._weights, key, params, self._buffer, self._pool)
            decoder.try_out()
        self._decoders[key] = decoder
        if len(self._decoders) > _KEPT:
            del self._decoders[next(iter(self._decoders))]
        return decoder
