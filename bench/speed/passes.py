"""How many passes per image by window, and how many codes differ between shapes of a pass: the mini model on a CPU.

Writes bench/results/passes_mini.json and the section "Passes" of bench/README.md.
"""

import json
import random
import statistics
from dataclasses import replace
from typing import Annotated

import torch
import typer
from torch import Tensor

from bench import RESULTS
from bench.mini.pictures import caption, random_scene
from bench.report import pages
from bench.report.tables import markdown
from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.images.whole_files import write_whole

FILE = RESULTS / "passes_mini.json"
WINDOWS = (1, 4, 8, 16, 32)
METHODS = {"baseline": None, "DoLa": DoLaConfig(alpha=0.1)}
DTYPES = ("float32", "bfloat16", "float16")
# Window and slots of two shapes of a pass that are compared.
SHAPES = {"W = 8 instead of 1": ((1, 8), (8, 8)), "8 slots instead of 1": ((1, 1), (1, 8))}


def captions(count: int) -> list[str]:
    """Returns captions of random pictures, the same every time."""
    rng = random.Random(1)
    return [caption(random_scene(rng)) for _ in range(count)]


def drawing_codes_only(dtype: str) -> JanusDoLa:
    """Loads the mini model with pictures of one pixel: in 16 bits whole ones take a CPU seconds each."""
    pipe = JanusDoLa.from_pretrained("mini", device="cpu", dtype=dtype)
    pipe.image_model = replace(pipe.image_model, to_pixels=lambda codes: torch.zeros(len(codes), 3, 1, 1))
    return pipe


def passes(pipe: JanusDoLa, prompts: list[str], dola: DoLaConfig | None, window: int) -> dict[str, float]:
    """Counts passes per image, mean and standard deviation, and codes per pass; one image per prompt, seeds 0, 1, ..."""
    of_each = [image.passes for image in pipe.stream(prompts, dola=dola, window=window)]
    mean = statistics.fmean(of_each)
    return {
        "mean": mean,
        "deviation": statistics.pstdev(of_each),
        "codes_a_pass": (pipe.image_model.image_tokens - 1) / mean,
    }


def codes(pipe: JanusDoLa, prompts: list[str], dola: DoLaConfig | None, window: int, slots: int) -> Tensor:
    """Draws codes [prompts, T] with this number of slots."""
    drawn = pipe.stream(prompts, dola=dola, window=window, max_images=slots)
    return torch.stack([image.tokens for image in drawn])


def difference(some: Tensor, others: Tensor) -> dict[str, float]:
    """Counts codes [B, T] that differ, and images whose codes do, per 10,000 codes of the same images.

    A code that differs for rounding changes what follows it, so it is the images that count such codes.
    """
    different = some != others
    each = 10_000 / some.numel()
    return {"codes": different.sum().item() * each, "images": different.any(-1).sum().item() * each}


def differences(pipe: JanusDoLa, prompts: list[str], dola: DoLaConfig | None) -> dict[str, dict[str, float]]:
    """Counts differences for each of `SHAPES`."""
    drawn = {shape: codes(pipe, prompts, dola, *shape) for shape in dict.fromkeys(sum(SHAPES.values(), ()))}
    return {name: difference(drawn[one], drawn[other]) for name, (one, other) in SHAPES.items()}


def text(results: dict) -> str:
    """Formats the results as two tables, with what they are."""
    settings = results["settings"]
    by_window = [
        [name, *(f"{row[w]['mean']:.1f} ± {row[w]['deviation']:.1f}: **{row[w]['codes_a_pass']:.2f}**" for w in row)]
        for name, row in results["passes"].items()
    ]
    by_dtype = [
        [dtype, name, *(f"{counts['codes']:.3g} in {counts['images']:.2g} images" for counts in rows[name].values())]
        for dtype, rows in results["differences"].items()
        for name in rows
    ]
    return "\n".join(
        [
            f"Passes per image of {settings['image_tokens']} codes (mean ± standard deviation), and codes per pass: "
            f"{settings['image_tokens'] - 1} over that mean, since the prompt's pass decides the first code. Mini model, "
            f"{settings['captions']} captions, one image each; temperature 1, cfg_weight 5, DoLa with alpha 0.1.",
            "",
            markdown(["", *(f"W = {window}" for window in WINDOWS)], by_window),
            f"Codes that differ, for each 10,000 drawn, and in how many images: {settings['captions_of_dtypes']} captions, "
            "DoLa and baseline as above, one thread. A code differs where two scores are equal but for rounding, which "
            "depends on how many rows a product has; what follows in its image then differs, too.",
            "",
            markdown(["dtype", "", *SHAPES], by_dtype),
        ]
    )


def main(
    images: Annotated[int, typer.Option(help="Captions for the passes, one image each.")] = 100,
    images_of_dtypes: Annotated[int, typer.Option(help="Captions for the codes that differ.")] = 157,
) -> None:
    """Measure on the mini model."""
    torch.set_num_threads(1)
    prompts = captions(max(images, images_of_dtypes))
    results: dict = {"settings": {}, "torch": torch.__version__, "passes": {}, "differences": {}}
    for dtype in DTYPES:
        pipe = drawing_codes_only(dtype)
        results["settings"] = {
            "captions": images, "captions_of_dtypes": images_of_dtypes, "image_tokens": pipe.image_model.image_tokens,
        }  # fmt: skip
        for name, dola in METHODS.items():
            if dtype == "float32":
                by_window = {str(window): passes(pipe, prompts[:images], dola, window) for window in WINDOWS}
                results["passes"][name] = by_window
                print(name, by_window, flush=True)
            differing = differences(pipe, prompts[:images_of_dtypes], dola)
            results["differences"].setdefault(dtype, {})[name] = differing
            print(dtype, name, differing, flush=True)
    write_whole(FILE, (json.dumps(results, indent=1) + "\n").encode())
    pages.replace(pages.REPORT, "passes", text(results))


if __name__ == "__main__":
    typer.run(main)
