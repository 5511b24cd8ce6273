"""The values of settings that have few. Importing them imports nothing else, so that `--help` is quick."""

from typing import Literal

MINI = "mini"
HINT_AT_MINI = (
    'Drawing with "mini", which knows coloured shapes only ("a large red circle on white"); '
    "a real Janus: --model deepseek-community/Janus-Pro-1B"
)

BackendName = Literal["auto", "reference", "torch", "triton"]
DtypeName = Literal["float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]
EngineName = Literal["auto", "graph", "compile", "eager"]
ImageFormat = Literal["jpg", "png", "webp"]
Quantization = Literal["int8", "fp8"]
WindowName = Literal["auto", "1", "2", "4", "8", "16", "32"]
