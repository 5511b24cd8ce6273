"""How the codes of an image are chosen: one class that API, command line, files, evaluation and server take whole.

A setting is added here, and a method that contrasts layers in `janus_dola.contrasts`. Options, the keys of JSON lines and
columns, the recipe in an image and the server's fields follow from the fields of `DrawSettings` and of the classes in
`CONTRASTS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict, get_type_hints

from janus_dola.arguments import check_negative, integer, number, shown, takes_old_name
from janus_dola.contrasts import BASELINE, CONTRASTS, DEFAULT_CONTRAST, Contrast, DoLaConfig, about, check_contrast
from janus_dola.kernels.params import MAX_TOP_K, SamplingParams


class Changes(TypedDict, total=False):
    """Keywords of `JanusDoLa.generate`, `stream` and `scores` that stand for fields of `DrawSettings`."""

    cfg_weight: float
    temperature: float
    contrast: Contrast | None
    dola: Contrast | None  # the same as `contrast`
    negative_prompt: str | None
    top_k: int
    top_p: float


class OldName(TypedDict, total=False):
    """`dola`, the older name of the argument `contrast`."""

    dola: Contrast | None


@takes_old_name("dola", "contrast")
@dataclass(frozen=True)
class DrawSettings:
    """How the codes of an image are chosen.

    Attributes:
        cfg_weight: weight w of classifier-free guidance, in -1e10 .. 1e10; 1 follows the prompt without guidance, which
            takes one row per image instead of two, and so about half the time and memory.
        temperature: T, 0 or in 1e-6 .. 1e10, applied to the contrasted distribution; 0 is greedy.
        contrast: how layers are contrasted; None is the plain baseline with the same sampler.
        negative_prompt: text that guidance steers away from, in place of the model's unconditional row. The shorter of both
            is padded before its words. None or "" is none. It does nothing at `cfg_weight` 1.
        top_k: only the k most probable codes are drawn, and codes as probable as the last of them; 0 keeps all.
        top_p: of those, only the fewest most probable codes that hold this share of softmax(F / T), and codes as probable as
            the last of them; in (0, 1], 1 keeps all.

    Raises:
        ValueError: a value is out of range.
    """

    cfg_weight: float = about(5.0, "How strongly the image follows the prompt: classifier-free guidance.")
    temperature: float = about(1.0, "Variety; 0 is greedy.")
    contrast: Contrast | None = about(DEFAULT_CONTRAST, "How layers are contrasted; none is plain decoding.")  # noqa: RUF009 (frozen)
    negative_prompt: str | None = about(None, "Text that guidance steers away from.", "none")
    top_k: int = about(0, "Draw only from the K most probable codes; 0 is all.")
    top_p: float = about(1.0, "Draw only from the most probable codes that hold this share, in (0, 1].")

    def __post_init__(self) -> None:
        check_contrast(self.contrast)
        object.__setattr__(self, "cfg_weight", number("cfg_weight", self.cfg_weight))
        object.__setattr__(self, "temperature", number("temperature", self.temperature, " >= 0 (0 is greedy)"))
        object.__setattr__(self, "negative_prompt", check_negative(self.negative_prompt))
        object.__setattr__(self, "top_k", integer("top_k", self.top_k, 0, MAX_TOP_K))
        object.__setattr__(self, "top_p", number("top_p", self.top_p, " in (0, 1]"))
        SamplingParams("", {}, self.cfg_weight, self.temperature, self.top_k, self.top_p)  # checks their ranges

    @property
    def guided(self) -> bool:
        """Returns whether images are steered away from a row without their words."""
        return self.cfg_weight != 1

    @property
    def away_from(self) -> str | None:
        """Returns the negative prompt if it does anything."""
        return self.negative_prompt if self.guided else None

    @property
    def lens(self) -> str | None:
        """Returns the lens that early layers are read through, as `DoLaConfig` names it."""
        return self.contrast.lens if isinstance(self.contrast, DoLaConfig) else None

    @property
    def _in_kernels(self) -> Contrast:
        return self.contrast or BASELINE

    def layers_to_read(self, num_hidden_layers: int) -> tuple[int, ...]:
        """Returns the layers below the final one that must be read, ascending; ValueError: the model lacks one."""
        return tuple(self._in_kernels.layers_to_read(num_hidden_layers))

    def layers_to_share(self, num_hidden_layers: int) -> tuple[int, ...]:
        """Returns the layers to read where images with other settings are in the same pass, see `layers_to_read`."""
        return tuple(self._in_kernels.layers_to_share(num_hidden_layers))

    def sampling_params(self, layers: Sequence[int]) -> SamplingParams:
        """Returns the numbers that the kernels choose a code by, in passes that read these layers and the final one."""
        name, numbers = self._in_kernels.name, self._in_kernels.numbers(layers)
        cfg_weight = self.cfg_weight if self.guided else None
        return SamplingParams(name, numbers, cfg_weight, self.temperature, self.top_k, self.top_p)

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as JSON holds them: flat, `contrast` by name or None, followed by the method's own."""
        values: dict[str, Any] = {}
        for each in fields(self):
            values[each.name] = getattr(self, each.name)
            if each.name == "contrast" and self.contrast is not None:
                values |= {"contrast": self.contrast.name, **vars(self.contrast)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def summary(self) -> str:
        """Describes the settings in few words, for people."""
        words = ["baseline" if self.contrast is None else self.contrast.summary()]
        words += [f"cfg {self.cfg_weight:g}", f"T {self.temperature:g}"]
        if self.negative_prompt is not None:
            words.append(f"away from {shown(self.negative_prompt)}")
        words += [f"top-k {self.top_k}"] if self.top_k else []
        words += [f"top-p {self.top_p:g}"] if self.top_p < 1 else []
        return ", ".join(words)

    def changed(self, given: Mapping[str, Any]) -> "DrawSettings":
        """Returns these settings with others in place of some of them.

        Args:
            given: values by the names of `SETTINGS`, as `to_json` gives them. `contrast` may be "none" as well; `dola` is
                true for DoLa and false for the baseline, beside which DoLa's own settings do nothing; None says nothing.
                Another contrast begins with the defaults of its settings.
        Raises:
            ValueError: a value is out of range, or belongs to another contrast.
            TypeError: there is no such setting.
        """
        own = {name: value for name, value in given.items() if name in SETTINGS and SETTINGS[name].methods}
        rest = {name: value for name, value in given.items() if name not in own and (name, value) != ("dola", None)}
        current = None if self.contrast is None else self.contrast.name
        if rest.get("dola") is False and "contrast" not in rest:
            DoLaConfig(**{name: own.pop(name) for name in list(own) if DoLaConfig.name in SETTINGS[name].methods})
        method = _method_of(rest) if "contrast" in rest or "dola" in rest else current
        foreign = next((name for name in own if method not in SETTINGS[name].methods), None)
        if foreign is not None:
            methods = " or ".join(SETTINGS[foreign].methods)
            raise ValueError(
                f"{foreign} must be left out with contrast {method or 'none'}, since it belongs to {methods}"
            )
        contrast = self.contrast
        if contrast is not None and method == current:
            contrast = replace(contrast, **own)
        else:
            contrast = None if method is None else CONTRASTS[method](**own)
        return replace(self, **rest, contrast=contrast)


def _method_of(given: dict[str, Any]) -> str | None:
    """Takes `contrast` or `dola` out of `given`, and returns the method's name, or None for the baseline."""
    if "contrast" in given and "dola" in given:
        raise ValueError(f"contrast must be left out where dola is given, got {shown(given['contrast'])}")
    if "dola" in given:
        dola = given.pop("dola")
        if dola not in (True, False):
            raise ValueError(f"dola must be true or false, got {shown(dola)}")
        return DoLaConfig.name if dola else None
    method = given.pop("contrast")
    if method is None or method == "none":
        return None
    if not (isinstance(method, str) and method in CONTRASTS):
        raise ValueError(f"contrast must be one of {[*CONTRASTS, 'none']}, got {shown(method)}")
    return method


def with_changes(settings: DrawSettings, changes: Changes) -> DrawSettings:
    """Returns settings with some fields replaced; ValueError: a value is out of range; TypeError: there is no such field."""
    if not isinstance(settings, DrawSettings):
        raise ValueError(f"settings must be DrawSettings, got {settings!r}; a DoLaConfig is given as contrast=")
    new: dict[str, Any] = dict(changes)
    if "dola" in new:
        if "contrast" in new:
            raise ValueError(f"contrast must be left out where dola is given, got {new['contrast']!r}")
        new["contrast"] = check_contrast(new.pop("dola"), "dola")
    return replace(settings, **new)


def named_contrast(contrast: Contrast | None, old: OldName) -> Contrast | None:
    """Returns the contrast that a caller gave as `contrast` or as `dola`; errors are as in `with_changes`.

    `contrast` is `DEFAULT_CONTRAST` itself where the caller gave none; `old` holds what came under the older name.
    """
    given: Changes = {} if contrast is DEFAULT_CONTRAST else {"contrast": contrast}
    return with_changes(DrawSettings(), {**given, **old}).contrast


@dataclass(frozen=True)
class Setting:
    """A value of `DrawSettings` or of a contrast, as options, columns, JSON and the server show it."""

    type: Any
    default: Any
    help: str
    nothing: str | None = None  # what its default None means, in words
    parse: Callable[[str], Any] | None = None  # reads the value from words, where its type does not say how
    methods: tuple[str, ...] = ()  # the contrasts it belongs to; none for settings that all images have


def _settings() -> dict[str, Setting]:
    settings: dict[str, Setting] = {}
    types = get_type_hints(DrawSettings)
    for each in fields(DrawSettings):
        settings[each.name] = Setting(types[each.name], each.default, **each.metadata)
        if each.name == "contrast":
            names = Literal[tuple([*CONTRASTS, "none"])]  # type: ignore[valid-type]  # noqa: C409
            settings["contrast"] = Setting(names, DEFAULT_CONTRAST.name, each.metadata["help"])
            settings["dola"] = Setting(bool | None, None, "The same as --contrast dola, or none.", "as --contrast says")
    for name, owner in CONTRASTS.items():
        types = get_type_hints(owner)
        for each in fields(owner):
            help, methods = f"{owner.title}: {each.metadata['help']}", [name]
            if (known := settings.get(each.name)) is not None:  # two methods share a name
                help, methods = f"{known.help} {help}", [*known.methods, name]
            settings[each.name] = Setting(
                types[each.name], each.default, **{**each.metadata, "help": help}, methods=tuple(methods)
            )
    return settings


SETTINGS = _settings()
