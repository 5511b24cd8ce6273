"""Trains the language model of the mini Janus to draw captioned pictures code by code, on top of a trained image tokenizer.

Everything is transformers' own `JanusForConditionalGeneration`. A sequence is a prompt exactly as the engine builds it,
then the 64 codes of a picture; the loss is on the codes. Every picture is seen with its caption and with the unconditional
prompt, and the loss has three parts: both of these, and the guided logits u + w (c - u) at a random w. Without the third,
a small model cannot be guided: at w = 5 the errors of c - u in codes that are all but impossible decide what is drawn.
"""

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    LlamaConfig,
)
from transformers.models.janus.modeling_janus import JanusVQVAE

from bench.mini.pictures import IMAGE_SIZE, Scene, draw, random_caption, random_scene
from bench.train.image_tokenizer import HIDDEN, VQ_CONFIG, encode
from bench.train.tokenizer import BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE, build_tokenizer
from janus_dola.models import adapt
from janus_dola.models.families.janus_prompts import JanusPrompts

BLOCKS, HEADS, INTERMEDIATE = 8, 6, 512
GUIDANCE = (1.0, 7.0)


def build_model(tokenizer, vq: JanusVQVAE) -> JanusForConditionalGeneration:
    """Builds an untrained mini Janus around a trained image tokenizer, with a stub for a vision tower."""
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = JanusVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=1, mlp_ratio=2.0, image_size=IMAGE_SIZE, patch_size=8,
        num_image_tokens=64, projection_dim=HIDDEN,
    )  # fmt: skip
    config = JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=VQ_CONFIG,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    model = JanusForConditionalGeneration(config)
    model.model.vqmodel.load_state_dict(vq.state_dict())
    with torch.no_grad():
        model.model.generation_embeddings.weight.copy_(vq.quantize.embedding.weight * 3)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        guidance_scale=5.0, generation_kwargs={"boi_token_id": JanusPrompts(tokenizer).special.begin_of_image},
    )  # fmt: skip
    return model


def codes_of_pictures(
    vq: JanusVQVAE, count: int, rng: random.Random, sides: Sequence[int] = (IMAGE_SIZE,)
) -> tuple[list[Scene], Tensor]:
    """Draws so many pictures and encodes them: their scenes, and [count, T] codes, of each as large as `sides` says in turn.

    A picture with a side of `IMAGE_SIZE` pixels has 64 codes.
    """
    scenes, codes, chunk = [], [], 64
    for _ in range(count // chunk):
        drawn = [random_scene(rng) for _ in range(chunk)]
        images, parts = [draw(scene, rng) for scene in drawn], []
        for side in sides:
            arrays = np.stack([np.asarray(image.resize((side, side), Image.Resampling.BOX)) for image in images])
            batch = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.autocast("cpu", dtype=torch.bfloat16):
                parts.append(encode(vq, batch))
        codes.append(torch.cat(parts, 1))
        scenes += drawn
    return scenes, torch.cat(codes)


def guided_rows(prompts: list[list[int]], framing: JanusPrompts) -> tuple[Tensor, Tensor]:
    """Returns conditional rows of prompts of B different lengths, then unconditional ones, padded on the left.

    Returns:
        [2B, S] token ids, and [2B, S] bool, False in the padding.
    """
    rows = [torch.tensor(row) for row in (*prompts, *(framing.rows(row).unconditional for row in prompts))]
    token_ids = pad_sequence(rows, batch_first=True, padding_value=framing.special.pad, padding_side="left")
    attended = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left").bool()
    return token_ids, attended


def train_backbone(
    vq_folder: Path,
    target: Path,
    steps: int,
    start: Path | None = None,
    pictures: int = 6144,
    batch_size: int = 16,
    peak_rate: float = 1.2e-3,
    seed: int = 0,
) -> None:
    """Trains for `steps` steps and saves model and tokenizer in transformers' format, weights in float16.

    The learning rate rises to `peak_rate` in 50 steps and falls along a cosine. With `start`, a folder that an earlier run
    saved, training goes on from there.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed + 1)
    tokenizer = build_tokenizer(seed) if start is None else AutoTokenizer.from_pretrained(start)
    vq = JanusVQVAE.from_pretrained(vq_folder).eval()
    model = build_model(tokenizer, vq)
    if start is not None:
        model.load_state_dict(JanusForConditionalGeneration.from_pretrained(start, dtype=torch.float32).state_dict())
    image_model = adapt(model)
    framing = JanusPrompts(tokenizer)
    started = time.time()
    scenes, codes = codes_of_pictures(vq, pictures, rng)
    print(
        f"backbone: {len(codes)} pictures, {len(codes.unique())} codes in use, {time.time() - started:.0f} s",
        flush=True,
    )
    for module in (model.model.vqmodel, model.model.vision_model, model.model.aligner):
        module.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    print(f"backbone: {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters", flush=True)
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.95), weight_decay=0.02)
    known: dict[str, list[int]] = {}
    started, recent = time.time(), []
    for step in range(steps):
        rate = peak_rate * min(1, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = [rng.randrange(len(codes)) for _ in range(batch_size)]
        prompts = []
        for text in (random_caption(scenes[i], rng) for i in chosen):
            if text not in known:
                known[text] = framing.ids(text)
            prompts.append(known[text])
        prompt_tokens, attended = guided_rows(prompts, framing)
        attended = torch.cat([attended, torch.ones(len(attended), 63, dtype=torch.bool)], 1).long()
        targets = codes[chosen]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            drawn = image_model.embed_codes(targets[:, :-1]).repeat(2, 1, 1)
            hidden = image_model.backbone(
                inputs_embeds=torch.cat([image_model.embed_text(prompt_tokens), drawn], 1), attention_mask=attended,
                position_ids=(attended.cumsum(-1) - 1).clamp(min=0), use_cache=False,
            ).last_hidden_state[:, -64:]  # fmt: skip
            logits = model.model.generation_head(hidden).float()
        conditional, unconditional = logits.chunk(2)
        guided = unconditional + rng.uniform(*GUIDANCE) * (conditional - unconditional)
        losses = [F.cross_entropy(z.flatten(0, 1), targets.flatten()) for z in (conditional, unconditional, guided)]
        loss = losses[0] + 0.5 * losses[1] + losses[2]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        recent.append([part.item() for part in losses])
        if (step + 1) % 100 == 0:
            minutes = (time.time() - started) / 60
            parts_of_loss = "  ".join(f"{part:.4f}" for part in np.mean(recent[-100:], axis=0))
            print(f"backbone step {step + 1}/{steps}  loss {parts_of_loss}  {minutes:.1f} min", flush=True)
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            save(model, tokenizer, target)


def save(model: JanusForConditionalGeneration, tokenizer, target: Path) -> None:
    """Saves a float16 copy."""
    half = JanusForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half.generation_config = model.generation_config
    half.half().save_pretrained(target)
    tokenizer.save_pretrained(target)
    # In the form of transformers 4, which both series read.
    file = target / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    kept = ("backend", "bos_token", "eos_token", "model_max_length", "pad_token", "padding_side")
    settings = {name: settings[name] for name in kept} | {
        "extra_special_tokens": {"image_token": IMAGE, "boi_token": BEGIN_OF_IMAGE, "eoi_token": END_OF_IMAGE},
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
