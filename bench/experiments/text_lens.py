"""Whether a contrast of layers tells right words from wrong ones: SmolLM2-135M-Instruct on 308 facts.

A fact is a prompt, its right continuation and two wrong ones, which are right for other prompts of the same table in
facts.json. Every other fact is for choosing settings, the rest for the result. Lenses are trained on text that the model
samples itself. What is scored is a distribution that says something of every word:

    p(x) = (1 - e) softmax(F / T)(x) + e q_N(x)        e = 0.01

so a word outside V_head has a hundredth of its plain probability. With alpha 0 every word is in V_head, as in the scores of
DoLa's paper. Writes bench/results/text_lens.json and the table in docs/text.md; one thread.
"""

import json
import math
import random
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
import typer
from torch import Tensor

from bench import RESULTS, ROOT
from bench.evaluation.metrics import Bootstrap
from bench.report.tables import markdown
from bench.speed.conftest import made_with
from janus_dola.contrasts import DoLaConfig
from janus_dola.images.whole_files import write_whole
from janus_dola.kernels.block_torch import Matrix
from janus_dola.kernels.contrast import dola, log_ratio, plausible
from janus_dola.kernels.lens_map import LayerLens
from janus_dola.kernels.reference import apply_head, rms_norm
from janus_dola.kernels.types import Head
from janus_dola.text.decode import named_layers
from janus_dola.text.language_model import find_text_model, text_head
from janus_dola.training.lens_training import LensSettings, LensTraining
from tests.janus_dola.smollm2 import INSTALL, folder, load_smollm2

FACTS, FILE, PAGE = Path(__file__).with_name("facts.json"), RESULTS / "text_lens.json", ROOT / "docs" / "text.md"
MARKERS = ("<!-- lens -->\n", "<!-- end of lens -->\n")
# A token each; the model goes on.
SEEDS = (
    "The",
    "In",
    "A",
    "I",
    "When",
    "How",
    "It",
    "We",
    "My",
    "This",
    "She",
    "Many",
    "Once",
    "There",
    "Some",
    "After",
)
LENS_LAYERS, BETAS = (9, 19), (0.25, 0.5, 1.0)
TRAINING = LensSettings(rank=64, steps=80, batch_size=64)
OF_PLAIN = 0.01
_AT_ONCE = 32  # positions
_FACTS_AT_ONCE = 4
_ROWS, _TOKENS = 1, 96  # texts that start with each seed, and their length


@dataclass(frozen=True)
class Fact:
    """A prompt and its continuations, the right one first."""

    prompt: str
    continuations: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """How words are scored. The lens "auto" is the one trained here."""

    contrast: DoLaConfig = DoLaConfig(alpha=0, premature_layer="final")  # noqa: RUF009 (frozen)
    temperature: float = 1.0


@dataclass(frozen=True)
class Words:
    """Words to be scored, and what the layers say before each."""

    words: Tensor  # [n]
    states: dict[int, Tensor]  # [n, D] of layers, before the norm


def facts() -> list[Fact]:
    """Makes the facts, with wrong continuations by chance, the same ones each time."""
    chance, made = random.Random(0), []
    for prompt, table in json.loads(FACTS.read_text(encoding="utf-8"))["facts"].items():
        for subject, right in table.items():
            wrong = chance.sample(sorted(set(table.values()) - {right}), 2)
            made.append(Fact(prompt.format(subject), (right, *wrong)))
    return made


def states_of(model, ids: Tensor, layers: list[int]) -> dict[int, Tensor]:
    """Reads the hidden states before the final norm, [R, T, D] each, for tokens [R, T]; shorter rows end in anything."""
    final = []
    norm = find_text_model(model).norm
    with norm.register_forward_pre_hook(lambda _, inputs: final.append(inputs[0])), torch.no_grad():
        out = model.get_decoder()(input_ids=ids, output_hidden_states=True, use_cache=False)
    return {layer: out.hidden_states[layer] for layer in layers[:-1]} | {layers[-1]: final[-1]}


def read(model, tokenizer, texts: list[list[tuple[str, str]]], layers: list[int]) -> Words:
    """Reads what comes before each token of continuations; the texts of an inner list are read at once."""
    words, states = [], defaultdict(list)
    for together in texts:
        pairs = [(tokenizer(prompt).input_ids, tokenizer(text).input_ids) for prompt, text in together]
        ids = torch.zeros(len(pairs), max(len(a) + len(b) for a, b in pairs), dtype=torch.int64)
        for row, (prompt, text) in zip(ids, pairs, strict=True):
            row[: len(prompt) + len(text)] = torch.tensor(prompt + text)
            words.append(torch.tensor(text))
        of_layers = states_of(model, ids, layers)
        for layer in layers:
            for row, (prompt, text) in zip(of_layers[layer], pairs, strict=True):
                states[layer].append(row[len(prompt) - 1 : len(prompt) + len(text) - 1])
    return Words(torch.cat(words), {layer: torch.cat(parts) for layer, parts in states.items()})


def sample(model, tokenizer, rows: int, tokens: int) -> Tensor:
    """Samples texts from the model, [16 rows, tokens]."""
    starts = torch.tensor([tokenizer(seed).input_ids[:1] for seed in SEEDS]).repeat(rows, 1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return model.generate(
            starts, attention_mask=torch.ones_like(starts), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=tokens - 1, min_new_tokens=tokens - 1,
        )  # fmt: skip


def train(model, texts: Tensor, layers: list[int], head: Head, settings: LensSettings):
    """Trains lenses on sampled texts: by layer the lens, and KL(q_N || q_j) in nats without it and with it."""
    parts = [torch.stack(list(states_of(model, ids, layers).values())).flatten(1, 2) for ids in texts.split(16)]
    training = LensTraining(torch.cat(parts, 1).clone(), head, settings)
    training.run(settings.steps)
    nats = zip(training.divergence(trained=False), training.divergence(), strict=True)
    lenses = [LayerLens(Matrix(down), Matrix(up, bias)) for down, up, bias in training.maps()]
    return dict(zip(layers, lenses, strict=False)), dict(zip(layers, nats, strict=False))


def _contrasted(
    early: list[Tensor], log_q: Tensor, log_alpha: float, premature: int, final_weight: float, premature_weight: float
) -> Tensor:
    """Computes F as `contrast.dola` does, which would also compute the divergence of a layer that is given."""
    weights = final_weight, premature_weight
    if premature >= 0:
        given = [*early, torch.zeros_like(log_q)][premature]
        return log_ratio(log_q, given, plausible(log_q, log_alpha), *weights)
    numbers = (torch.full(log_q.shape[:1], number) for number in (log_alpha, premature, *weights))
    return dola(torch.stack([*early, log_q]), *numbers).scores


def log_probabilities(head: Head, lenses: dict, words: Words, settings: list[Setting], final: int) -> np.ndarray:
    """Computes the log-probability of each word under each setting: [settings, n] float64."""
    columns = []
    for start in range(0, len(words.words), _AT_ONCE):
        part, kept = slice(start, start + _AT_ONCE), {}

        def log_q(layer: int, lens: bool, part: slice = part, kept: dict = kept) -> Tensor:
            if (layer, lens) not in kept:
                states = words.states[layer][part]
                normed = rms_norm(lenses[layer](states) if lens else states, head.norm_weight, head.norm_eps)
                kept[layer, lens] = apply_head(normed, head).log_softmax(-1)
            return kept[layer, lens]

        chosen = words.words[part, None]
        plain = log_q(final, False).gather(1, chosen)
        column, scores = [], {}
        for setting in settings:
            contrast = setting.contrast
            key = repr(contrast)
            if key not in scores:
                layers = contrast.layers_to_read(final)
                early, numbers = [log_q(layer, contrast.lens is not None) for layer in layers], contrast.numbers(layers)
                scores[key] = _contrasted(early, log_q(final, False), **numbers)
            log_p = (scores[key] / setting.temperature).log_softmax(-1).gather(1, chosen)
            column.append(torch.logaddexp(log_p + math.log1p(-OF_PLAIN), plain + math.log(OF_PLAIN)))
        columns.append(torch.stack(column)[..., 0].double().numpy())
    return np.concatenate(columns, 1)


def measures(log_p: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Returns each fact's measures from log-probabilities of all tokens, and tokens of each continuation [facts, K]."""
    totals = np.add.reduceat(log_p, np.concatenate([[0], lengths.ravel().cumsum()[:-1]])).reshape(lengths.shape)
    means = totals / lengths
    log_mass = totals[:, 0] - np.logaddexp.reduce(totals, 1)
    margin = means[:, 0] - means[:, 1:].max(1)
    right = (margin > 0).astype(float)
    return {"right": right, "mass": np.exp(log_mass), "log mass": log_mass, "margin": margin, "log p": means[:, 0]}


def rows(blocks: int, tied: bool, lens_layers: tuple[int, ...]) -> dict[str, list[Setting]]:
    """Lists the rows of the table, and the settings that each is chosen from."""
    high = named_layers("high", blocks, tied)

    def weighed(beta: float, lens: str | None, temperatures: tuple[float, ...] = (1.0,)) -> list[Setting]:
        contrasts = [
            DoLaConfig(alpha=alpha, premature_layer=layer, beta=beta, lens=lens)
            for layer in lens_layers
            for alpha in (0, 0.1)
        ]
        return [Setting(contrast, temperature) for contrast in contrasts for temperature in temperatures]

    return {
        "plain": [Setting()],
        "temperature": [Setting(temperature=t) for t in (0.6, 0.75, 0.9, 1.15, 1.3, 1.5)],
        "truncation alone": [Setting(DoLaConfig(alpha=alpha, premature_layer="final")) for alpha in (0.02, 0.1, 0.25)],
        "DoLa, alpha 0.1": [Setting(DoLaConfig(high, alpha=0.1))],
        "DoLa, every word": [Setting(DoLaConfig(high, alpha=0))],
        "finite weight, no lens": [each for beta in BETAS for each in weighed(beta, None)],
        **{f"lens, beta {beta:g}": weighed(beta, "auto") for beta in BETAS},
        "lens and temperature": [each for beta in BETAS for each in weighed(beta, "auto", (0.75, 1.0, 1.3))],
    }  # fmt: skip


def measure(model, tokenizer, made: list[Fact], held_out: list[str], lens_layers=LENS_LAYERS, training=TRAINING):
    """Trains the lenses, chooses settings on every other fact, and measures them on the rest: a record for JSON."""
    parts = find_text_model(model)
    head, blocks = text_head(model, parts), len(parts.blocks)
    lenses, nats = train(model, sample(model, tokenizer, _ROWS, _TOKENS), [*lens_layers, blocks], head, training)
    print({layer: [round(n, 2) for n in pair] for layer, pair in nats.items()}, flush=True)
    table = rows(blocks, parts.tied, tuple(lens_layers))
    layers = sorted(
        {blocks, *(j for own in table.values() for each in own for j in each.contrast.layers_to_read(blocks))}
    )

    def scored(half: list[Fact], settings: list[Setting]) -> list[dict[str, np.ndarray]]:
        pairs = [(fact.prompt, f" {text}") for fact in half for text in fact.continuations]
        lengths = np.array([len(tokenizer(text).input_ids) for _, text in pairs]).reshape(len(half), -1)
        at_once = _FACTS_AT_ONCE * lengths.shape[1]
        texts = [pairs[start : start + at_once] for start in range(0, len(pairs), at_once)]
        log_p = log_probabilities(head, lenses, read(model, tokenizer, texts, layers), settings, blocks)
        print(f"{len(half)} facts, {len(settings)} settings", flush=True)
        return [measures(each, lengths) for each in log_p]

    everything = [(name, setting) for name, own in table.items() if len(own) > 1 for setting in own]
    best = {name: (-math.inf, own[0]) for name, own in table.items()}
    for (name, setting), values in zip(everything, scored(made[::2], [each for _, each in everything]), strict=True):
        best[name] = max(best[name], (values["log mass"].mean(), setting), key=lambda pair: pair[0])
    chosen = {name: setting for name, (_, setting) in best.items()}
    values = dict(zip(chosen, scored(made[1::2], list(chosen.values())), strict=True))
    words = read(
        model, tokenizer, [[(text.split(" ", 1)[0], f" {text.split(' ', 1)[1]}")] for text in held_out], layers
    )
    of_text = log_probabilities(head, lenses, words, list(chosen.values()), blocks)
    bootstrap = Bootstrap(len(made[1::2]))
    cells = {
        name: {
            "setting": {**asdict(setting.contrast), "temperature": setting.temperature},
            **{key: bootstrap.estimate(values[name][key]).rounded() for key in values[name]},
            **{
                f"over {other}": {
                    key: bootstrap.estimate(values[name][key] - values[other][key]).rounded() for key in values[name]
                }
                for other in ("plain", "temperature")
            },
            "perplexity": float(np.exp(-log_p.mean())),
        }
        for (name, setting), log_p in zip(chosen.items(), of_text, strict=True)
    }  # fmt: skip
    counts = {"facts": len(made[1::2]), "tokens": len(words.words)}
    return counts | {"nats": nats, "training": asdict(training), "cells": cells}


def describe(setting: dict) -> str:
    """Names what was chosen for a row."""
    fixed, layers = setting["premature_layer"], setting["candidate_layers"]
    what = [
        "" if fixed == "final" else f"layer {fixed}" if fixed is not None else f"layers {layers[0]} to {layers[-1]}"
    ]
    what += [f"beta {setting['beta']:g}" if setting["beta"] is not None else ""]
    what += [f"alpha {setting['alpha']:g}" if setting["alpha"] or fixed != "final" else ""]
    return ", ".join(filter(None, [*what, f"T {setting['temperature']:g}" if setting["temperature"] != 1 else ""]))


def table(record: dict) -> str:
    """Formats the results in Markdown, with what they were made with."""

    def interval(estimate: dict[str, float], scale: float, digits: int, sign: str = "") -> str:
        mean, low, high = (f"{scale * estimate[key]:{sign}.{digits}f}" for key in ("mean", "low", "high"))
        return f"{mean} [{low}, {high}]"

    body = [
        [
            name,
            describe(cell["setting"]),
            f"{100 * cell['right']['mean']:.1f}",
            interval(cell["over plain"]["right"], 100, 1, "+"),
            interval(cell["mass"], 100, 1),
            f"{cell['log mass']['mean']:.3f}",
            interval(cell["margin"], 1, 2),
            f"{cell['perplexity']:.1f}",
        ]
        for name, cell in record["cells"].items()
    ]
    header = [
        "",
        "chosen",
        "right, %",
        "over plain",
        "mass on right, %",
        "log of it",
        "right - best wrong",
        "perplexity",
    ]
    nats = "; ".join(f"layer {layer}: {before:.2f} to {after:.2f}" for layer, (before, after) in record["nats"].items())
    training = record["training"]
    return (
        f"SmolLM2-135M-Instruct, {record['facts']} facts, each with a right continuation and two wrong ones; 95% "
        f"intervals in brackets (paired bootstrap over\nfacts). Right: the highest mean log-probability per token. Mass: "
        f"the right one's share of the three. Right - best wrong: means per token, nats.\nPerplexity: {record['tokens']} "
        f"tokens of held-out prose. Each row's setting has the highest mean log of the mass on as many other facts.\n"
        f"Lenses of rank {training['rank']}, {training['steps']} steps of {training['batch_size']} positions: mean KL "
        f"from the final layer without and with, nats: {nats}.\nMade by `python -m bench.experiments.text_lens` with "
        f"torch {record['torch']} and transformers {record['transformers']} on a machine ({record['device']}).\n\n"
        f"{markdown(header, body)}\n"
    )


def main() -> None:
    """Measure and write, with one thread; some minutes."""
    there = folder()
    if there is None:
        raise SystemExit(f"needs the weights of SmolLM2: {INSTALL}")
    torch.set_num_threads(1)
    held_out = json.loads(FACTS.read_text(encoding="utf-8"))["text"]
    made_by = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": made_with("cpu")["device"],
    }
    record = made_by | measure(*load_smollm2(there), facts(), held_out)
    write_whole(FILE, (json.dumps(record, indent=1) + "\n").encode())
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKERS[0])
    write_whole(PAGE, (before + MARKERS[0] + table(record) + MARKERS[1] + rest.split(MARKERS[1])[1]).encode())
    print(table(record))


if __name__ == "__main__":
    typer.run(main)
