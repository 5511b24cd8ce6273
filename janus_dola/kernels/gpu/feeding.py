"""What stands before and after a pass, a launch each: the codes that are fed, and what becomes of the codes drawn.

`engine.slots.Slots` has the same on tensors, to the bit, and says what it means. Letters: S slots, R rows (two or one a
slot), W codes fed per slot and pass, D hidden size. P positions lie in memory for each slot, its image's and 2 W more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _with_line_ends(codes, place, stride, columns, LINE_END: tl.constexpr):
    # As `Raster.with_line_ends`; a negative LINE_END is none.
    return tl.where(place % stride == columns, LINE_END, codes) if LINE_END >= 0 else codes


@triton.jit
def _feed_kernel(
    tokens_ptr,  # [S, P] int64
    decided_ptr,  # [S] int64
    prompt_tokens_ptr,  # [R] int64
    seeds_ptr,  # [S] int64
    table_ptr,  # [CODES, D]
    embeddings_ptr,  # [R * W, D]
    start_ptr,  # [R] int64
    fed_seeds_ptr,  # [S * W] int64
    position_ptr,  # [S * W] int64
    slots, positions, D, stride, columns, LINE_END: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_D: tl.constexpr,  # >= D
):  # fmt: skip
    row, ahead = tl.program_id(0) // WINDOW, tl.program_id(0) % WINDOW
    slot = row % slots
    decided = tl.load(decided_ptr + slot)
    place = decided - 1 + ahead
    code = _with_line_ends(tl.load(tokens_ptr + slot * positions + place), place, stride, columns, LINE_END)
    d = tl.arange(0, BLOCK_D)
    embedding = tl.load(table_ptr + code * D + d, mask=d < D)
    tl.store(embeddings_ptr + tl.program_id(0).to(tl.int64) * D + d, embedding, mask=d < D)
    tl.store(start_ptr + row, tl.load(prompt_tokens_ptr + row) + decided - 1, mask=ahead == 0)
    tl.store(fed_seeds_ptr + tl.program_id(0), tl.load(seeds_ptr + slot), mask=row < slots)
    tl.store(position_ptr + tl.program_id(0), place + 1, mask=row < slots)


@triton.jit
def _accept_kernel(
    code_ptr,  # [S * W] int64, drawn after each code fed; the next four as `SampledCodes` says
    layer_ptr, jsd_ptr, sampled_finite_ptr, log_prob_ptr,
    tokens_ptr,  # [S, P] int64
    layers_ptr,  # [S, P] int64
    jsds_ptr,  # [S, P], in the dtype of jsd
    log_probs_ptr,  # [S, P], in the same
    decided_ptr,  # [S] int64
    passes_ptr,  # [S] int64
    finite_ptr,  # [S] bool
    guesses_ptr,  # [P] int64, which place's code is each one's first guess
    positions, length, stride, columns, LINE_END: tl.constexpr, WINDOW: tl.constexpr,
    PADDED: tl.constexpr,  # WINDOW, to a power of two
):  # fmt: skip
    slot, i = tl.program_id(0), tl.arange(0, PADDED)
    inside = i < WINDOW
    tokens_ptr += slot * positions
    decided = tl.load(decided_ptr + slot)
    place = decided + i  # where what was drawn stands; what was fed stands one before
    fed = _with_line_ends(tl.load(tokens_ptr + place - 1, mask=inside, other=0), place - 1, stride, columns, LINE_END)
    guess = _with_line_ends(tl.load(tokens_ptr + place, mask=i < WINDOW - 1, other=0), place, stride, columns, LINE_END)
    sampled = slot * WINDOW + i
    codes = _with_line_ends(tl.load(code_ptr + sampled, mask=inside, other=0), place, stride, columns, LINE_END)
    before = tl.load(guesses_ptr + place + WINDOW, mask=inside, other=0)  # for the places behind the window
    first_guess = tl.load(tokens_ptr + before, mask=inside, other=0)
    finite = tl.load(sampled_finite_ptr + sampled, mask=inside, other=1) != 0

    # The right guesses up to the first wrong one, and the code behind them; nothing beyond the image's end.
    right = tl.min(tl.where((guess == codes) & (i < WINDOW - 1), WINDOW - 1, tl.minimum(i, WINDOW - 1)), 0)
    accepted = tl.minimum(right + 1, length - decided)
    rejected = i >= accepted
    # A run that goes on from the first wrong guess goes on with its replacement.
    wrong = tl.sum(tl.where(i == tl.minimum(accepted, WINDOW - 1), fed, 0), 0)
    replacement = tl.sum(tl.where(i == tl.maximum(accepted - 1, 0), codes, 0), 0)
    end = tl.min(tl.where(rejected & (codes != wrong), i, PADDED), 0)
    codes = tl.where(rejected & (i < end), replacement, codes)
    # Behind the window, a code drawn before is the guess; it may be one that is written here.
    is_new = (before - decided)[:, None] == i[None, :]
    first_guess = tl.where(
        (before >= decided) & (before < decided + WINDOW), tl.sum(tl.where(is_new, codes[None, :], 0), 1), first_guess
    )

    tl.debug_barrier()  # all threads have read before one of them writes
    tl.store(tokens_ptr + place, codes, mask=inside)
    tl.store(tokens_ptr + place + WINDOW, first_guess, mask=inside)
    tl.store(layers_ptr + slot * positions + place, tl.load(layer_ptr + sampled, mask=inside), mask=inside)
    tl.store(jsds_ptr + slot * positions + place, tl.load(jsd_ptr + sampled, mask=inside), mask=inside)
    tl.store(log_probs_ptr + slot * positions + place, tl.load(log_prob_ptr + sampled, mask=inside), mask=inside)
    whole = tl.min((finite | rejected).to(tl.int32), 0) == 1
    tl.store(finite_ptr + slot, (tl.load(finite_ptr + slot) != 0) & whole)
    tl.store(passes_ptr + slot, tl.load(passes_ptr + slot) + (accepted > 0).to(tl.int64))
    tl.store(decided_ptr + slot, decided + accepted)


def feed(
    tokens: Tensor,
    decided: Tensor,
    prompt_tokens: Tensor,
    seeds: Tensor,
    code_table: Tensor,
    window: int,
    stride: int,
    columns: int,
    line_end: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Looks up what a pass is fed.

    Args:
        tokens, decided, prompt_tokens, seeds: as in `Slots`, int64: [S, P], [S], [R / S, S], [S].
        code_table: [CODES, D].
        window, stride, columns, line_end: W, and as in `Raster`.
    Returns:
        as `Fed` says: embeddings, start, seeds and position.
    """
    (slots, positions), rows = tokens.shape, prompt_tokens.numel()
    width = code_table.shape[1]
    embeddings = torch.empty(rows * window, width, dtype=code_table.dtype, device=code_table.device)
    start = torch.empty(rows, dtype=torch.int64, device=tokens.device)
    fed_seeds, position = (torch.empty(slots * window, dtype=torch.int64, device=tokens.device) for _ in range(2))
    with torch.cuda.device_of(tokens):  # where Triton launches
        _feed_kernel[(rows * window,)](
            tokens, decided, prompt_tokens, seeds, code_table, embeddings, start, fed_seeds, position, slots, positions,
            width, stride, columns, LINE_END=-1 if line_end is None else line_end, WINDOW=window,
            BLOCK_D=triton.next_power_of_2(width), num_warps=4,
        )  # fmt: skip
    return embeddings, start, fed_seeds, position


def accept(
    sampled: tuple[Tensor, ...],
    tokens: Tensor,
    layers: Tensor,
    jsd: Tensor,
    log_probs: Tensor,
    decided: Tensor,
    passes: Tensor,
    finite: Tensor,
    first_guesses: Tensor,
    window: int,
    length: int,
    stride: int,
    columns: int,
    line_end: int | None,
) -> None:
    """Accepts the codes that a pass decides, in place.

    Args:
        sampled: code, layer, jsd, finite and log_prob of each code fed, [S * W] each.
        tokens, layers, jsd, log_probs, decided, passes, finite: as in `Slots`; written.
        first_guesses: [P] int64, as `Raster.first_guesses` gives them.
        window, length, stride, columns, line_end: W, and as in `Raster`.
    """
    with torch.cuda.device_of(tokens):  # where Triton launches
        _accept_kernel[(len(tokens),)](
            *sampled, tokens, layers, jsd, log_probs, decided, passes, finite, first_guesses, tokens.shape[1], length,
            stride, columns, LINE_END=-1 if line_end is None else line_end, WINDOW=window,
            PADDED=triton.next_power_of_2(window), num_warps=1,
        )  # fmt: skip
