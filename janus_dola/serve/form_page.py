"""Makes the page at `/`: a form, baseline and DoLa from the same seed, and maps of what DoLa did."""

import json
from importlib.resources import files

from janus_dola.images.layer_map import colour_of_layer, css, css_ramp

_LAYERS = 128  # as many as `small_map` can show
# The page loads nothing from elsewhere and sends nothing there, whatever a prompt or a model's name holds.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}


def form_page(model: str, asks_for_key: bool, root_path: str = "") -> str:
    """Returns the page as HTML, for a server that browsers see below `root_path`; "" is where the page itself is."""
    colours = [css(colour_of_layer(layer)) for layer in range(_LAYERS)]
    server = {"model": model, "asks_for_key": asks_for_key, "colours": colours, "ramp": css_ramp()}
    server["root"] = root_path and f"{root_path}/"
    text = files("janus_dola.serve").joinpath("form_page.html").read_text(encoding="utf-8")
    return text.replace("/*SERVER*/null", json.dumps(server).replace("<", "\\u003c"))
