"""`generate` and `generate_with_dola`, callable like the function in the script of DeepSeek's repository.

Both draw with torch.multinomial from torch's global generator, as that script does, and save `img_{k}.jpg`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from janus_dola.config import DoLaConfig
from janus_dola.pipeline import GenerationOutput, JanusDoLa


def generate(
    mmgpt: PreTrainedModel,
    vl_chat_processor: ProcessorMixin | PreTrainedTokenizerBase,
    prompt: str,
    temperature: float = 1.0,
    parallel_size: int = 16,
    cfg_weight: float = 5.0,
    outdir: str | Path = "generated_samples",
) -> GenerationOutput:
    """Plain decoding: draws `parallel_size` images and saves them to `outdir`.

    Args:
        mmgpt: DeepSeek's `MultiModalityCausalLM` or transformers' `JanusForConditionalGeneration`.
        vl_chat_processor: its processor, or its tokenizer.
        prompt: plain words, or a text already in the chat format that ends with `<begin_of_image>`.
        temperature, parallel_size, cfg_weight: as in `JanusDoLa.generate`.
    Raises:
        ValueError: an argument is out of range; nothing has been drawn then.
    """
    return _draw(mmgpt, vl_chat_processor, prompt, temperature, parallel_size, cfg_weight, outdir, None)


def generate_with_dola(
    mmgpt: PreTrainedModel,
    vl_chat_processor: ProcessorMixin | PreTrainedTokenizerBase,
    prompt: str,
    temperature: float = 1.0,
    parallel_size: int = 16,
    cfg_weight: float = 5.0,
    outdir: str | Path = "generated_samples",
    alpha: float = 0.1,
    candidate_layers: Sequence[int] | Literal["auto"] = "auto",
) -> GenerationOutput:
    """DoLa decoding; `alpha` and `candidate_layers` as in `DoLaConfig`, the rest as in `generate`."""
    dola = DoLaConfig(candidate_layers=candidate_layers, alpha=alpha)
    return _draw(mmgpt, vl_chat_processor, prompt, temperature, parallel_size, cfg_weight, outdir, dola)


def _draw(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    prompt: str,
    temperature: float,
    parallel_size: int,
    cfg_weight: float,
    outdir: str | Path,
    dola: DoLaConfig | None,
) -> GenerationOutput:
    pipe = JanusDoLa(model, getattr(processor, "tokenizer", processor))
    drawn = pipe.generate(
        prompt,
        parallel_size,
        dola=dola,
        cfg_weight=cfg_weight,
        temperature=temperature,
        seed=None,
        sampler="multinomial",
    )
    folder = Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(drawn.images[0]):
        image.save(folder / f"img_{k}.jpg")
    return drawn
