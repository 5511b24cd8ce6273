"""Draws batches of images: makes the step ready (compiled, captured), runs the prompts, then a step for each code."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from janus_dola.engine.backbone import VISIBLE_MULTIPLE, visible_length
from janus_dola.engine.decode import Codes, Decoder
from janus_dola.engine.graphs import StepGraphs
from janus_dola.engine.plan import Plan, has_graphs
from janus_dola.engine.schedule import bucket_of
from janus_dola.models.parts import JanusParts
from janus_dola.prompt import PromptBatch

_AHEAD = 4  # steps that the host may be ahead of the device while a bar is shown


class Engine:
    """Draws batches of images with one model, and keeps the graphs of the last kind of batch for the next one like it."""

    def __init__(self, parts: JanusParts) -> None:
        self._parts = parts
        with torch.no_grad():  # [V, D], what each code is fed back as
            self.code_table = parts.embed_codes(torch.arange(parts.head.num_codes, device=parts.device))
        self._decoder: Decoder | None = None  # the one that the graphs are of
        self._graphs: StepGraphs | None = None
        self._failed: set[str] = set()  # engines that could not be had

    @torch.no_grad()
    def draw(
        self, prompts: PromptBatch, seeds: Tensor, plan: Plan, strict: bool = False, progress: bool = False
    ) -> Codes:
        """Draws the codes of B images. On a GPU the work is queued: nothing here waits for it.

        Args:
            prompts: the distinct rows of the prompts, and which of them each of the 2B rows begins with.
            seeds: [B] int64 on the model's device; keys of the noise for the sampler "gumbel".
            strict: a step that cannot be compiled or captured is an error; otherwise it runs eagerly, after a warning.
            progress: shows a bar with tokens per second and the time left.
        Raises:
            RuntimeError: with `strict`, the step cannot be compiled or captured.
        """
        decoder, step = self.begin(prompts, seeds, plan, strict)
        positions = range(1, self._parts.image_tokens)
        for position in _with_bar(positions, len(seeds), self._parts.device) if progress else positions:
            step(position)
        return decoder.codes(len(seeds))

    @torch.no_grad()
    def begin(
        self, prompts: PromptBatch, seeds: Tensor, plan: Plan, strict: bool = False
    ) -> tuple[Decoder, Callable[[int], None]]:
        """Makes the step ready, runs the prompts and draws the first code of each image.

        Args:
            prompts, seeds, plan, strict: as for `draw`.
        Returns:
            the decoder, and what draws the code at position 1, then 2 and so on.
        """
        images, length = len(seeds), prompts.token_ids.shape[1]
        if plan.engine in self._failed and not strict:
            plan = replace(plan, engine="eager")
        try:
            decoder, step = self._prepare(plan, images, length)
        except torch.OutOfMemoryError:
            self.release()
            raise
        except RuntimeError as error:
            self.release()
            if strict or plan.engine == "eager":
                raise
            self._failed.add(plan.engine)
            warnings.warn(f"engine {plan.engine!r} failed, and the step runs eagerly instead: {error}", stacklevel=3)
            decoder, step = self._prepare(replace(plan, engine="eager"), images, length)
        decoder.begin(*_padded(prompts, seeds, decoder.images))
        return decoder, lambda position: step(visible_length(length + position))

    def _prepare(self, plan: Plan, images: int, length: int) -> tuple[Decoder, Callable[[int], None]]:
        """A decoder for so many images and prompts of so many tokens, and its step, called with the visible length."""
        parts = self._parts
        capacity = visible_length(length + parts.image_tokens)
        visible = range(visible_length(length + 1), capacity + 1, VISIBLE_MULTIPLE)
        if plan.engine == "eager" or not has_graphs(parts.device):
            self.release()
            decoder = Decoder(parts, self.code_table, plan, images, capacity)
            if plan.engine == "compile":
                decoder.try_steps(visible)
            return decoder, decoder.step
        # torch.multinomial draws other numbers for a larger batch.
        bucket = images if plan.sampler == "multinomial" else bucket_of(images)
        kept = self._decoder
        if kept is None or (kept.plan, kept.images, kept.capacity) != (plan, bucket, capacity):
            self.release()
            self._decoder = kept = Decoder(parts, self.code_table, plan, bucket, capacity)
            self._graphs = StepGraphs(kept)
        assert self._graphs is not None
        self._graphs.capture(visible)
        return kept, self._graphs.replay

    def release(self) -> None:
        """Gives back the memory of what is kept for the next batch."""
        self._decoder = self._graphs = None

    @property
    def kept_bytes(self) -> int:
        """Memory that is kept for the next batch, and given back when that is of another kind."""
        return 0 if self._decoder is None else self._decoder.key_value_bytes


def _padded(prompts: PromptBatch, seeds: Tensor, images: int) -> tuple[PromptBatch, Tensor]:
    """Repeats the first image until there are so many."""
    index = torch.arange(images, device=seeds.device)
    index = torch.where(index < len(seeds), index, 0)
    row_of = prompts.row_of.unflatten(0, (2, -1))[:, index].flatten()
    return replace(prompts, row_of=row_of), seeds[index]


def _with_bar(steps: Iterable[int], images: int, device: torch.device) -> Iterator[int]:
    """The steps, with a bar that follows the device, which would otherwise lag far behind the host."""
    queued: deque[torch.cuda.Event] = deque()
    for step in tqdm(steps, unit="tok", unit_scale=images, leave=False):
        yield step
        if device.type == "cuda":
            queued.append(torch.cuda.current_stream(device).record_event())
            if len(queued) > _AHEAD:
                queued.popleft().synchronize()
