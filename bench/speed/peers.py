"""What our engine is compared with: loops written the plain way, for measurement only.

`seed_loop` is the loop of the original integration: transformers run eagerly with `output_hidden_states=True`, which keeps
all hidden states, one call of the head for each layer, torch.multinomial, a growing cache.
`transformers_generate` is transformers' own image generation, which has no DoLa.
"""

import torch
from torch import Tensor

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.dola_runtime import (
    compute_logprobs_from_hidden,
    contrast_with_apc_from_logprobs,
    select_layer_by_jsd,
)
from janus_dola.engine.pixels import start_pixels


def decode_pixels(pipe: JanusDoLa, tokens: Tensor) -> None:
    """Decodes codes [B, T] into pictures, as drawing does."""
    for wait in [start_pixels(pipe.image_model, codes) for codes in tokens]:
        wait()


def _rows(pipe: JanusDoLa, prompt: str, images: int) -> Tensor:
    """Returns token ids [2 images, S], conditional rows first."""
    rows = torch.tensor(pipe.encode(prompt)[0], device=pipe.image_model.device)
    return rows.repeat_interleave(images, 0)


@torch.no_grad()
def seed_loop(
    pipe: JanusDoLa,
    prompt: str,
    images: int,
    dola: DoLaConfig | None,
    cfg_weight: float = 5.0,
    temperature: float = 1.0,
    most: int | None = None,
) -> Tensor:
    """Draws from torch's global generator, for a model of transformers' family: [images, T] codes on the CPU.

    `most` ends images after so many codes, for measurement.
    """
    model = pipe.model.model
    ln_out, phi = model.language_model.norm, model.generation_head
    layers = [] if dola is None else dola.layers_to_read(pipe.image_model.num_layers)

    def guided(log_probabilities: Tensor) -> Tensor:
        conditional, unconditional = log_probabilities.chunk(2)
        return torch.log_softmax(unconditional + cfg_weight * (conditional - unconditional), -1)

    inputs = model.language_model.get_input_embeddings()(_rows(pipe, prompt, images))
    cache, tokens = None, []
    for _ in range(most or pipe.image_model.image_tokens):
        output = model.language_model(
            inputs_embeds=inputs, past_key_values=cache, use_cache=True, output_hidden_states=True
        )
        cache = output.past_key_values
        # the last hidden state has been through the norm already
        final = guided(torch.log_softmax(phi(output.last_hidden_state[:, -1]).float(), -1))
        if layers:
            early = {
                j: guided(compute_logprobs_from_hidden(output.hidden_states[j][:, -1], ln_out, phi)) for j in layers
            }
            chosen = select_layer_by_jsd(final, early)
            premature = torch.stack([early[int(j)][i] for i, j in enumerate(chosen.expand(images))])
            probabilities = contrast_with_apc_from_logprobs(final, premature, dola.alpha)
        else:
            probabilities = final.exp()
        if temperature != 1.0:
            probabilities = torch.softmax(probabilities.log() / temperature, -1)
        code = torch.multinomial(probabilities, 1).squeeze(-1)
        tokens.append(code.cpu())
        inputs = model.generation_aligner(model.generation_embeddings(code.repeat(2))).unsqueeze(1)
    return torch.stack(tokens, 1)


@torch.no_grad()
def transformers_generate(pipe: JanusDoLa, prompt: str, images: int, cfg_weight: float = 5.0) -> Tensor:
    """Draws by transformers' own image generation and torch's global generator: [images, T] codes."""
    ids = torch.tensor([pipe.encode(prompt)[0].conditional], device=pipe.image_model.device)
    return pipe.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_mode="image", guidance_scale=cfg_weight,
        num_return_sequences=images, do_sample=True, top_k=0,
    )  # fmt: skip
