"""Nodes for ComfyUI: load a Janus, and draw with every setting of janus-dola.

An image depends on its seed alone, so ComfyUI's cache is right: the same inputs are the same picture.
"""

from functools import partial
from typing import Literal, get_args, get_origin

import comfy.model_management
import comfy.utils
import numpy as np
import torch

from janus_dola import JanusDoLa
from janus_dola.settings import SETTINGS, DrawSettings


class LoadJanus:
    """Loads a model."""

    DESCRIPTION = "Loads a Janus: a repository on the Hugging Face Hub, a folder, or mini, which knows coloured shapes."
    CATEGORY = "janus-dola"
    RETURN_TYPES = ("JANUS",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        """Describes the inputs."""
        return {
            "required": {
                "model": ("STRING", {"default": "deepseek-community/Janus-Pro-1B"}),
                "device": (["auto", "cuda", "mps", "cpu"],),
                "dtype": (["auto", "bfloat16", "float16", "float32"],),
                "quantize": (["none", "int8", "fp8"],),
            }
        }

    def load(self, model, device, dtype, quantize):
        """Loads a model; "auto" and "none" leave the choice to it."""
        device, dtype, quantize = (None if each in ("auto", "none") else each for each in (device, dtype, quantize))
        return (JanusDoLa.from_pretrained(model, device, dtype, quantize=quantize),)


class DrawWithJanus:
    """Draws images of one prompt, and maps of what the contrast did in each."""

    DESCRIPTION = "Draws images of a prompt. Image k has the seed + k, and depends on nothing else."
    CATEGORY = "janus-dola"
    RETURN_TYPES = ("IMAGE", "IMAGE")
    RETURN_NAMES = ("images", "layer maps")
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls):
        """Describes the inputs: those below, and a widget for each setting."""
        return {
            "required": {
                "janus": ("JANUS",),
                "prompt": ("STRING", {"default": "a large red circle on white", "multiline": True}),
                "images": ("INT", {"default": 4, "min": 1, "max": 64}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**53 - 64, "control_after_generate": True}),
                "baseline_beside": ("BOOLEAN", {"default": False, "tooltip": "Left of each image: without contrast."}),
                **{name: widget(setting) for name, setting in SETTINGS.items() if name != "dola"},
            }
        }

    def draw(self, janus, prompt, images, seed, baseline_beside, **values):
        """Draws the images, and before them those without contrast that stand on their left."""
        settings = settings_of(values)
        runs = [settings.changed({"contrast": "none"}), settings] if baseline_beside else [settings]
        codes = images * janus.image_model.image_tokens
        bar, outputs = comfy.utils.ProgressBar(len(runs) * codes), []
        for run in runs:
            callback = partial(report, bar, len(outputs) * codes)
            outputs.append(janus.generate(prompt, images, run, seed=seed, callback=callback))
        pictures = [to_tensor(output.images[0]) for output in outputs]
        maps = [drawn.layer_map() for drawn in outputs[-1].drawn[0]]
        return torch.cat(pictures, dim=2), to_tensor(maps)


def report(bar, before, decided, begun):
    """Shows how far drawing has come; raises what ends it where ComfyUI's user has cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    bar.update_absolute(before + decided)


def widget(setting):
    """Returns how ComfyUI asks for a setting; an empty text is the default."""
    shown = {"tooltip": setting.help}
    if get_origin(setting.type) is Literal:
        return [*get_args(setting.type)], {"default": setting.default, **shown}
    if setting.type is float:
        return "FLOAT", {"default": setting.default, "min": -100.0, "max": 100.0, "step": 0.01, "round": False, **shown}
    if setting.type is int:
        return "INT", {"default": setting.default, "min": 0, "max": 2**31 - 1, **shown}
    return "STRING", {"default": "", **shown}


def settings_of(values):
    """Returns `DrawSettings` from widgets; those of another contrast, which stand there as well, say nothing."""
    given = {}
    for name, value in values.items():
        setting = SETTINGS[name]
        if value == "" or (setting.methods and values["contrast"] not in setting.methods):
            continue
        parse = float if setting.type == float | None else setting.parse
        given[name] = parse(value) if parse is not None else value
    return DrawSettings().changed(given)


def to_tensor(pictures):
    """Returns pictures of one size as ComfyUI holds them: [N, H, W, 3] float32 in 0 .. 1."""
    return torch.stack([torch.from_numpy(np.array(picture.convert("RGB"))) for picture in pictures]).float() / 255


NODE_CLASS_MAPPINGS = {"LoadJanus": LoadJanus, "DrawWithJanus": DrawWithJanus}
NODE_DISPLAY_NAME_MAPPINGS = {"LoadJanus": "Load Janus", "DrawWithJanus": "Draw with Janus"}
