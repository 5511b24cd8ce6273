import os

import hypothesis
import pytest
import torch
import transformers

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernels are imported: they run in numpy then
from janus_dola import JanusDoLa

hypothesis.settings.register_profile("unhurried", deadline=None)  # the first call of an operation can be slow
hypothesis.settings.load_profile("unhurried")
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def mini() -> JanusDoLa:
    """The shipped model in float32 on the CPU."""
    return JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def deepseek(mini) -> JanusDoLa:
    """A small model with random weights in DeepSeek's classes, in float32 on the CPU."""
    from tests.deepseek_stand_in import MultiModalityCausalLM

    return JanusDoLa(MultiModalityCausalLM(len(mini.tokenizer)).eval().requires_grad_(False), mini.tokenizer)


@pytest.fixture(scope="session")
def mini_hidden_states(mini) -> torch.Tensor:
    """[4, 8, 192]: layers 2, 4, 6 and 8 of the mini model for four images, in the middle of being drawn."""
    from janus_dola.engine.backbone import Backbone, visible_length
    from janus_dola.models.taps import tap_buffer, tapped
    from janus_dola.prompt import prompt_batch

    words = [
        "a large red circle on white",
        "a small blue square on grey",
        "a green cross",
        "a large yellow triangle on black",
    ]
    prompts = [mini._prompt_ids(prompt) for prompt in words]
    rows = prompt_batch(prompts, mini._special, torch.device("cpu"))
    codes = mini.generate(words, seed=7).tokens[:, 0]
    written = rows.token_ids.shape[1]
    backbone = Backbone(mini.parts, 8, visible_length(written + 30))
    hidden_states = tap_buffer(mini.parts, [2, 4, 6], 8)
    with torch.no_grad():
        backbone.begin(rows)
        with tapped(mini.parts, [2, 4, 6], hidden_states):
            for position in range(30):
                embeddings = mini.parts.embed_codes(codes[:, position]).repeat(2, 1)
                backbone.step(embeddings, visible_length(written + position + 1))
    return hidden_states
