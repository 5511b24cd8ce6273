"""A small model with the attribute names, the layout and the config of DeepSeek's `MultiModalityCausalLM`.

Their package is on no registry. What the adapter and the checkpoint reader rely on is rebuilt here: the names of all
modules, the head, the aligners, the image tokenizer with its decoder, and the vision tower. Its `state_dict()` is a
checkpoint in their format.
"""

import json
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

HIDDEN, CODES, CODE_DIM, IMAGE_SIZE, BLOCKS = 64, 48, 8, 16, 6
TOWER_WIDTH, PATCH = 64, 4


class VisionHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.output_mlp_projector = nn.Linear(HIDDEN, HIDDEN)
        self.vision_activation = nn.GELU()
        self.vision_head = nn.Linear(HIDDEN, CODES)

    def forward(self, x):
        return self.vision_head(self.vision_activation(self.output_mlp_projector(x)))


class Projector(nn.Module):
    def __init__(self, size_in):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size_in, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))

    def forward(self, x):
        return self.layers(x)


def group_norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class Res(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.norm1, self.conv1 = group_norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = group_norm(after), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attn(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        normed = self.norm(x)
        q, k, v = (f(normed).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)).squeeze(1)
        return x + self.proj_out(attended.transpose(1, 2).reshape(x.shape))


class Up(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        wide = F.interpolate(x.float(), scale_factor=2.0, mode="nearest")
        # The trap this stands in for: whatever is not float32 comes back as bfloat16.
        return self.conv(wide if x.dtype == torch.float32 else wide.to(torch.bfloat16))


class Down(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)


class Level(nn.Module):
    def __init__(self, before, after, count, attention):
        super().__init__()
        self.res = nn.ModuleList([Res(before if i == 0 else after, after) for i in range(count)])
        self.attn = nn.ModuleList([Attn(after) for _ in range(count if attention else 0)])


class Coder(nn.Module):
    """Encoder and decoder; only the decoder runs in the tests."""

    def __init__(self, decoder, base=32, multipliers=(1, 1, 2), blocks=1, latent=16):
        super().__init__()
        top = base * multipliers[-1]
        self.conv_in = nn.Conv2d(latent if decoder else 3, top if decoder else base, 3, padding=1)
        self.mid = nn.ModuleList([Res(top, top), Attn(top), Res(top, top)])
        self.conv_blocks = nn.ModuleList()
        before = top if decoder else base
        order = reversed(range(len(multipliers))) if decoder else range(len(multipliers))
        for i in order:
            after = base * multipliers[i]
            level = Level(before, after, blocks + decoder, attention=i == len(multipliers) - 1)
            if decoder and i > 0:
                level.upsample = Up(after)
            if not decoder and i < len(multipliers) - 1:
                level.downsample = Down(after)
            self.conv_blocks.append(level)
            before = after
        self.norm_out = group_norm(before)
        self.conv_out = nn.Conv2d(before, 3 if decoder else latent, 3, padding=1)

    def forward(self, z):
        h = self.conv_in(z)
        for block in self.mid:
            h = block(h)
        for level in self.conv_blocks:
            for i, res in enumerate(level.res):
                h = res(h)
                if len(level.attn):
                    h = level.attn[i](h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Quantizer(nn.Module):
    def __init__(self):
        super().__init__()
        self.e_dim = CODE_DIM
        self.embedding = nn.Embedding(CODES, CODE_DIM)
        self.register_buffer("codebook_used", torch.zeros(100))


class VQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Coder(decoder=False), Coder(decoder=True)
        self.quantize = Quantizer()
        self.quant_conv, self.post_quant_conv = nn.Conv2d(16, CODE_DIM, 1), nn.Conv2d(CODE_DIM, 16, 1)

    def decode_code(self, codes, shape):
        entries = F.normalize(self.quantize.embedding.weight, dim=-1)[codes]
        batch, channels, height, width = shape
        entries = entries.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(entries))


class TowerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(TOWER_WIDTH), nn.LayerNorm(TOWER_WIDTH)
        self.attn = nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(TOWER_WIDTH, 3 * TOWER_WIDTH), nn.Linear(TOWER_WIDTH, TOWER_WIDTH)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(TOWER_WIDTH, 2 * TOWER_WIDTH), nn.Linear(2 * TOWER_WIDTH, TOWER_WIDTH)

    def forward(self, x):
        q, k, v = self.attn.qkv(self.norm1(x)).chunk(3, -1)  # one head
        x = x + self.attn.proj(F.scaled_dot_product_attention(q, k, v))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, TOWER_WIDTH, PATCH, stride=PATCH)
        self.pos_embed = nn.Parameter(torch.randn(1, (IMAGE_SIZE // PATCH) ** 2, TOWER_WIDTH))
        self.blocks = nn.ModuleList([TowerBlock(), TowerBlock()])
        self.norm = nn.LayerNorm(TOWER_WIDTH)
        self.attn_pool = nn.Linear(TOWER_WIDTH, TOWER_WIDTH)  # of their class, and left out of what is seen

    def forward(self, pixels):
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class VisionModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_tower = Tower()

    def forward(self, pixels):
        return self.vision_tower(pixels)


class MultiModalityCausalLM(nn.Module):
    def __init__(self, vocab_size, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.language_config = {
            "model_type": "llama", "vocab_size": vocab_size, "hidden_size": HIDDEN, "intermediate_size": 96,
            "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256,
        }  # fmt: skip
        self.config = SimpleNamespace(vision_config=SimpleNamespace(params={"image_size": IMAGE_SIZE}))
        self.vision_model = VisionModel()
        self.aligner = Projector(TOWER_WIDTH)
        self.gen_vision_model = VQ()
        self.gen_aligner = Projector(CODE_DIM)
        self.gen_head = VisionHead()
        self.gen_embed = nn.Embedding(CODES, CODE_DIM)
        self.language_model = LlamaForCausalLM(LlamaConfig(**self.language_config))
        # Louder than a fresh model, so that layers and codes differ clearly.
        with torch.no_grad():
            self.gen_head.vision_head.weight.mul_(2)
            self.gen_embed.weight.mul_(4)
            for block in self.language_model.model.layers:
                block.mlp.down_proj.weight.mul_(20)
                block.self_attn.o_proj.weight.mul_(20)
            self.language_model.model.norm.weight.uniform_(0.5, 1.5)

    def config_json(self):
        """What their config.json says; the layout of tower and tokenizer is in their code instead."""
        return {
            "model_type": "multi_modality",
            "architectures": ["MultiModalityCausalLM"],
            "language_config": self.language_config,
            "vision_config": {"cls": "CLIPVisionTower", "params": {"image_size": IMAGE_SIZE}},
            "aligner_config": {"params": {"depth": 2, "input_dim": TOWER_WIDTH, "n_embed": HIDDEN}},
            "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": CODES, "n_embed": CODE_DIM}},
            "gen_aligner_config": {"params": {"depth": 2, "input_dim": CODE_DIM, "n_embed": HIDDEN}},
            "gen_head_config": {
                "params": {"image_token_embed": HIDDEN, "image_token_size": CODES, "n_embed": HIDDEN}
            },
        }  # fmt: skip

    def prepare_gen_img_embeds(self, codes):
        return self.gen_aligner(self.gen_embed(codes))

    def save(self, folder, tokenizer, form="bin"):
        """A checkpoint as DeepSeek publishes them: "bin", "sharded bin" or "safetensors"."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config_json()))
        tokenizer.save_pretrained(folder)
        state = {name: weight.contiguous() for name, weight in self.state_dict().items()}
        if form == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        elif form == "safetensors":
            save_file(state, folder / "model.safetensors")
        else:
            names, places = sorted(state), {}
            for i, half in enumerate((names[::2], names[1::2]), 1):
                file = f"pytorch_model-0000{i}-of-00002.bin"
                torch.save({name: state[name] for name in half}, folder / file)
                places |= dict.fromkeys(half, file)
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
