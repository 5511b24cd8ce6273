"""A stand-in with open_clip's interface: images embed to their mean colour, texts to the colour of a word in them."""

import types
from collections.abc import Mapping

import torch

Colour = tuple[float, float, float]
RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


class Network(torch.nn.Module):
    def encode_image(self, pixels, normalize):
        return torch.nn.functional.normalize(pixels, dim=-1) if normalize else pixels

    encode_text = encode_image


def stand_in(colours: Mapping[str, Colour]) -> types.ModuleType:
    """The module; it has one architecture, "Tiny", whose weights are "here"."""

    def create_model_and_transforms(architecture, pretrained, device):
        if pretrained != "here":
            raise RuntimeError(f"no file {pretrained}\nand more")
        return Network(), None, lambda image: torch.tensor(image.convert("RGB").resize((1, 1)).getpixel((0, 0))) / 255.0

    def tokenize(texts):
        return torch.tensor([next(colour for word, colour in colours.items() if word in text) for text in texts])

    module = types.ModuleType("open_clip")
    module.list_models = lambda: ["Tiny"]
    module.create_model_and_transforms = create_model_and_transforms
    module.get_tokenizer = lambda architecture: tokenize
    return module
