"""How the codes of an image are chosen: one class that API, command line, files, evaluation and server take whole.

A setting is added here. Options, the keys of JSON lines and columns, the recipe in an image and the server's fields follow
from the fields of `DrawSettings` and `DoLaConfig`; what it does to a code follows from `kernels.types.Decoding`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypedDict, get_type_hints

from janus_dola.checks import check_negative, integer, number, shown
from janus_dola.config import DoLaConfig, about
from janus_dola.kernels.decoding import MAX_TOP_K, Decoding


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
        self.decoding(())

    def decoding(self, layers: tuple[int, ...]) -> Decoding:
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
        return Decoding(self.cfg_weight, self.temperature, alpha, premature, self.top_k, self.top_p)

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
    found = {}
    for of in (DrawSettings, DoLaConfig):
        types = get_type_hints(of)
        for field in fields(of):
            of_dola = field.name == "dola"
            found[field.name] = Setting(
                bool if of_dola else types[field.name], True if of_dola else field.default, **field.metadata
            )
    return found


OF_DOLA = tuple(field.name for field in fields(DoLaConfig))  # names of settings that do nothing without it
_ALWAYS = ("cfg_weight", "temperature", "dola")
_DEFAULTS = {field.name: field.default for field in fields(DrawSettings)}
SETTINGS = _settings()
