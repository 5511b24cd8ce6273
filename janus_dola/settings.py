"""How the codes of an image are chosen: one class that API, command line, files, evaluation and server take whole.

A setting is added here. Options, the keys of JSON lines and columns, the recipe in an image and the server's fields follow
from the fields of `DrawSettings` and `DoLaConfig`; what it does to a code follows from `kernels.types.Decoding`.
"""

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypedDict, get_type_hints

from janus_dola.arguments import check_negative, integer, number, several, shown
from janus_dola.kernels.params import MAX_TOP_K, SamplingParams, check_alpha


def about(default: Any, help: str, nothing: str | None = None, parse: Callable[[str], Any] | None = None) -> Any:
    """A field of settings with what those who show it to a user must know, see `janus_dola.settings.Setting`."""
    return field(default=default, metadata={"help": help, "nothing": nothing, "parse": parse})


def parse_layers(text: str) -> list[int] | Literal["auto"]:
    """ "auto", or a comma-separated list of layers.

    Raises:
        ValueError: it is neither.
    """
    if text.strip() == "auto":
        return "auto"
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f'candidate_layers must be "auto" or integers separated by commas, got {text!r}') from None


def parse_premature(text: str) -> int | Literal["final"]:
    """ "final", or a layer.

    Raises:
        ValueError: it is neither.
    """
    if text == "final":
        return "final"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'premature_layer must be an integer or "final", got {text!r}') from None


def auto_candidate_layers(num_hidden_layers: int) -> list[int]:
    """Every second of the last eight blocks below the final one: 30 blocks give 22, 24, 26, 28."""
    return [layer for layer in range(num_hidden_layers - 8, num_hidden_layers, 2) if layer >= 1]


def sanitize_candidate_layers(layers: Sequence[int], num_hidden_layers: int) -> list[int]:
    """The layers that can be contrasted with the final one, ascending and without repetition.

    Args:
        layers: indices as in Hugging Face's `hidden_states`: 0 is the embeddings, j the output of block j.
        num_hidden_layers: N, the number of blocks; N itself is the final layer.
    Returns:
        those of 1 .. N-1. Others are dropped with one warning.
    Raises:
        ValueError: none is left.
    """
    kept = sorted({layer for layer in layers if 1 <= layer <= num_hidden_layers - 1})
    dropped = sorted(set(layers) - set(kept))
    if not kept:
        raise ValueError(
            f"candidate_layers must name a layer in 1 .. {num_hidden_layers - 1} "
            f"(this model has {num_hidden_layers} blocks), got {list(layers)}"
        )
    if dropped:
        warnings.warn(
            f"candidate_layers outside 1 .. {num_hidden_layers - 1} dropped: {dropped}; {kept} remain", stacklevel=2
        )
    return kept


@dataclass(frozen=True)
class DoLaConfig:
    """Decoding by contrasting layers (Chuang et al., ICLR 2024, arXiv 2309.03883).

    Attributes:
        candidate_layers: "auto" (see `auto_candidate_layers`) or layer indices as in Hugging Face's `hidden_states`.
        alpha: threshold of the adaptive plausibility constraint, in [0, 1]: codes with less than alpha times the top
            probability of the final layer are never drawn.
        premature_layer: None contrasts with the candidate that diverges most, chosen for each image and token; an integer
            always with that layer (DoLa-static); "final" with none, which leaves the plain distribution on the plausible
            codes, and with alpha = 0 the baseline exactly.

    Raises:
        ValueError: a value is out of range.
    """

    candidate_layers: Literal["auto"] | Sequence[int] = about(
        "auto",
        "Layers to choose from, 1 .. N-1 of a model with N blocks (`janus-dola info` tells N): 2,4,6. "
        "auto is every second of the last eight below the final one: N-8, N-6, N-4 and N-2.",
        parse=parse_layers,
    )
    alpha: float = about(
        0.1, "0 .. 1: codes with less than ALPHA times the top probability of the final layer are never drawn."
    )
    premature_layer: int | Literal["final"] | None = about(
        None,
        "Always contrast with this layer, 1 .. N-1; final contrasts with none.",
        "the candidate that differs most, by JSD",
        parse_premature,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", number("alpha", self.alpha, " in [0, 1]"))
        check_alpha(self.alpha)
        layers, forced = self.candidate_layers, self.premature_layer
        if not (isinstance(layers, str) and layers == "auto"):
            whole = [_int(layer) for layer in several(layers) or ()]
            if not whole or None in whole:
                raise ValueError(f'candidate_layers must be "auto" or a list of ints, got {layers!r}')
            object.__setattr__(self, "candidate_layers", tuple(whole))
        if forced is not None and forced != "final":
            if _int(forced) is None:
                raise ValueError(f'premature_layer must be None, "final" or an int, got {forced!r}')
            object.__setattr__(self, "premature_layer", _int(forced))

    def summary(self) -> str:
        """The contrast in few words, for people."""
        if self.premature_layer == "final":
            return f"no contrast, alpha {self.alpha:g}"
        if self.premature_layer is not None:
            return f"DoLa alpha {self.alpha:g}, layer {self.premature_layer}"
        layers = self.candidate_layers
        return f"DoLa alpha {self.alpha:g}, layers {layers if isinstance(layers, str) else ' '.join(map(str, layers))}"

    def layers_to_read(self, num_hidden_layers: int) -> list[int]:
        """The layers below the final one whose distribution is needed: none for "final", one for a static layer.

        Raises:
            ValueError: the layers named do not exist in a model of `num_hidden_layers` blocks.
        """
        if self.premature_layer == "final":
            return []
        if self.premature_layer is not None:
            if not 1 <= self.premature_layer <= num_hidden_layers - 1:
                raise ValueError(
                    f'premature_layer must lie in 1 .. {num_hidden_layers - 1}, or be "final" or None, '
                    f"got {self.premature_layer}"
                )
            return [self.premature_layer]
        layers = self.candidate_layers
        if isinstance(layers, str):
            layers = auto_candidate_layers(num_hidden_layers)
        return sanitize_candidate_layers(layers, num_hidden_layers)


def _int(value: Any) -> int | None:
    """The value as an int, if it is one; numpy's are, too, and bools are none."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


class Changes(TypedDict, total=False):
    """Keywords of `JanusDoLa.generate`, `stream`, `draw` and `scores` that stand for fields of `DrawSettings`."""

    cfg_weight: float
    temperature: float
    dola: DoLaConfig | None
    negative_prompt: str | None
    top_k: int
    top_p: float


@dataclass(frozen=True)
class DrawSettings:
    """How the codes of an image are chosen.

    Attributes:
        cfg_weight: weight w of classifier-free guidance, finite; 1 follows the prompt without guidance.
        temperature: T >= 0, applied to the contrasted distribution; 0 is greedy.
        dola: how layers are contrasted; None is the plain baseline with the same sampler.
        negative_prompt: what guidance leads away from, in place of the model's unconditional row. The shorter of both has
            pads before its words. None or "" is none. It does nothing at `cfg_weight` 1.
        top_k: only the so many most probable codes are drawn, and those as probable as the last of them; 0 keeps all.
        top_p: of those, only the fewest most probable that hold this share of softmax(F / T), and those as probable as the
            last of them; in (0, 1], 1 keeps all.

    Raises:
        ValueError: a value is out of range.
    """

    cfg_weight: float = about(5.0, "How strongly the image follows the prompt: classifier-free guidance.")
    temperature: float = about(1.0, "Variety; 0 is greedy.")
    dola: DoLaConfig | None = about(DoLaConfig(), "DoLa, or plain decoding.")  # noqa: RUF009 (frozen)
    negative_prompt: str | None = about(None, "What guidance leads away from, instead of from no words.", "none")
    top_k: int = about(0, "Draw only from the so many most probable codes; 0 is all.")
    top_p: float = about(1.0, "Draw only from the most probable codes that hold this share, in (0, 1].")

    def __post_init__(self) -> None:
        if not (self.dola is None or isinstance(self.dola, DoLaConfig)):
            raise ValueError(f"dola must be a DoLaConfig, or None for plain decoding, got {self.dola!r}")
        object.__setattr__(self, "cfg_weight", number("cfg_weight", self.cfg_weight))
        object.__setattr__(self, "temperature", number("temperature", self.temperature, " >= 0 (0 is greedy)"))
        object.__setattr__(self, "negative_prompt", check_negative(self.negative_prompt))
        object.__setattr__(self, "top_k", integer("top_k", self.top_k, 0, MAX_TOP_K))
        object.__setattr__(self, "top_p", number("top_p", self.top_p, " in (0, 1]"))
        self.sampling_params(())

    def sampling_params(self, layers: tuple[int, ...]) -> SamplingParams:
        """The numbers that the kernels choose a code by, in passes that read these layers and the final one.

        Args:
            layers: the candidates of the image, or any others with its forced layer among them; with none of them, as here
                where values are only checked, a forced layer stands for the final one.
        Raises:
            ValueError: a value is out of range.
        """
        alpha, forced = (0.0, "final") if self.dola is None else (self.dola.alpha, self.dola.premature_layer)
        stack: tuple[int | str, ...] = (*layers, "final")
        premature = None if forced is None else stack.index(forced) if layers else 0
        return SamplingParams(self.cfg_weight, self.temperature, alpha, premature, self.top_k, self.top_p)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON holds them, with `dola` null or an object; what was added later only where it is set."""
        found = asdict(self)
        if self.dola is not None and not isinstance(self.dola.candidate_layers, str):
            found["dola"]["candidate_layers"] = list(self.dola.candidate_layers)
        return {name: value for name, value in found.items() if name in _ALWAYS or value != _DEFAULTS[name]}

    def named(self) -> dict[str, Any]:
        """The same with each value under a name of its own, as `changed` takes them; DoLa is false where there is none."""
        found = self.to_json()
        dola = found.pop("dola")
        return found | ({"dola": False} if dola is None else dola)

    def summary(self) -> str:
        """The settings in few words, for people: what was added later only where it is set."""
        named = [f"cfg {self.cfg_weight:g}", f"T {self.temperature:g}"]
        if self.negative_prompt is not None:
            named.append(f"away from {shown(self.negative_prompt)}")
        more = {name: value for name, value in self.to_json().items() if name not in (*_ALWAYS, "negative_prompt")}
        named += [f"{name.replace('_', '-')} {value:g}" for name, value in more.items()]
        return ", ".join(["baseline" if self.dola is None else self.dola.summary(), *named])

    def changed(self, given: Mapping[str, Any]) -> "DrawSettings":
        """These settings with others in place of some of them.

        Args:
            given: values by the names of `SETTINGS`; `dola` is True or False, or as `to_json` gives it.
        Raises:
            ValueError: a value is out of range, or of DoLa where there is none.
            TypeError: there is no such setting.
        """
        of_dola = {name: value for name, value in given.items() if name in OF_DOLA}
        rest = {name: value for name, value in given.items() if name not in OF_DOLA}
        wanted = rest.pop("dola", self.dola is not None)
        if isinstance(wanted, Mapping):
            of_dola, wanted = dict(wanted), True
        if wanted not in (True, False, None):
            raise ValueError(f"dola must be true or false, got {wanted!r}")
        if of_dola and not wanted and "dola" not in given:
            raise ValueError(f"{next(iter(of_dola))} must be left out where there is no DoLa")
        dola = replace(self.dola or DoLaConfig(), **of_dola)  # checked even where it is not used
        return replace(self, **rest, dola=dola if wanted else None)


def with_changes(settings: DrawSettings, changes: Changes) -> DrawSettings:
    """Settings with some fields replaced.

    Raises:
        ValueError: a value is out of range, or the first argument is of another kind.
        TypeError: there is no such field.
    """
    if not isinstance(settings, DrawSettings):
        raise ValueError(f"settings must be DrawSettings, got {settings!r}; a DoLaConfig is given as dola=")
    return replace(settings, **changes)


@dataclass(frozen=True)
class Setting:
    """A value of `DrawSettings` or its `DoLaConfig`, as an option, a column or a key of JSON has it."""

    type: Any  # of the value
    default: Any
    help: str
    nothing: str | None  # what its default None means, in words
    parse: Callable[[str], Any] | None  # makes a value of words, where its type does not say how


def _settings() -> dict[str, Setting]:
    settings = {}
    for owner in (DrawSettings, DoLaConfig):
        types = get_type_hints(owner)
        for each in fields(owner):
            kind, default = (bool, True) if each.name == "dola" else (types[each.name], each.default)
            settings[each.name] = Setting(kind, default, **each.metadata)
    return settings


OF_DOLA = tuple(field.name for field in fields(DoLaConfig))  # names of settings that do nothing without it
_ALWAYS = ("cfg_weight", "temperature", "dola")
_DEFAULTS = {field.name: field.default for field in fields(DrawSettings)}
SETTINGS = _settings()
