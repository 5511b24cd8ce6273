"""`generate` and `generate_with_dola`, callable like the function in the script in DeepSeek's repository.

Both draw with torch.multinomial from torch's global generator, as that script does, and save `img_{k}.jpg`.
"""

import io
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from janus_dola.contrasts import Contrast, DoLaConfig
from janus_dola.images.outputs import GenerationOutput
from janus_dola.images.whole_files import write_whole
from janus_dola.pipeline import JanusDoLa


def generate(
    mmgpt: PreTrainedModel,
    vl_chat_processor: ProcessorMixin | PreTrainedTokenizerBase,
    prompt: str,
    temperature: float = 1.0,
    parallel_size: int = 16,
    cfg_weight: float = 5.0,
    image_token_num_per_image: int | None = None,
    img_size: int | None = None,
    patch_size: int | None = None,
    outdir: str | Path = "generated_samples",
    *,
    contrast: Contrast | None = None,
) -> GenerationOutput:
    """Draws `parallel_size` images, by plain decoding if nothing else is said, and saves them to `outdir`.

    Args:
        mmgpt: DeepSeek's `MultiModalityCausalLM` or transformers' `JanusForConditionalGeneration`.
        vl_chat_processor: its processor, or its tokenizer.
        prompt: plain words, or a text already in the chat format that ends with `<begin_of_image>`.
        temperature, parallel_size, cfg_weight: as in `JanusDoLa.generate`.
        image_token_num_per_image, img_size, patch_size: codes per image, pixels per side, pixels per side of a code. They
            must be None or the model's own (576, 384 and 16 for Janus-Pro).
        outdir: made if need be.
        contrast: how layers are contrasted; None is plain decoding.
    Raises:
        ValueError: an argument is out of range, or a size is not the model's; nothing has been drawn then.
    """
    if not isinstance(outdir, str | Path):
        raise ValueError(f"outdir must be a path, got {outdir!r}")
    pipe = JanusDoLa(mmgpt, getattr(vl_chat_processor, "tokenizer", vl_chat_processor))
    image_model, (width, _) = pipe.image_model, pipe.image_model.image_size
    for name, given, right in (
        ("image_token_num_per_image", image_token_num_per_image, image_model.image_tokens),
        ("img_size", img_size, width),
        ("patch_size", patch_size, width // image_model.raster.columns),
    ):
        if given is not None and not (isinstance(given, Real) and given == right):
            raise ValueError(f"{name} must be None or that of this model, {right}, got {given!r}")
    drawn = pipe.generate(
        prompt,
        parallel_size,
        contrast=contrast,
        cfg_weight=cfg_weight,
        temperature=temperature,
        seed=None,
        sampler="multinomial",
    )
    folder = Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(drawn.images[0]):
        content = io.BytesIO()
        image.save(content, format="jpeg")
        write_whole((folder / f"img_{k}.jpg").resolve(), content.getvalue())  # a link is followed, as by that script
    return drawn


def generate_with_dola(
    mmgpt: PreTrainedModel,
    vl_chat_processor: ProcessorMixin | PreTrainedTokenizerBase,
    prompt: str,
    temperature: float = 1.0,
    parallel_size: int = 16,
    cfg_weight: float = 5.0,
    image_token_num_per_image: int | None = None,
    img_size: int | None = None,
    patch_size: int | None = None,
    outdir: str | Path = "generated_samples",
    alpha: float = 0.1,
    candidate_layers: Sequence[int] | Literal["auto"] = "auto",
) -> GenerationOutput:
    """Draws with DoLa decoding; `alpha` and `candidate_layers` as in `DoLaConfig`, the rest as in `generate`."""
    numbers = temperature, parallel_size, cfg_weight, image_token_num_per_image, img_size, patch_size
    dola = DoLaConfig(candidate_layers, alpha)
    return generate(mmgpt, vl_chat_processor, prompt, *numbers, outdir, contrast=dola)
