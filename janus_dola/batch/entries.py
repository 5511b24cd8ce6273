"""The lines of the manifest: what is said of an image that was drawn, of one that failed, and of a malformed prompt."""

from pathlib import Path

from janus_dola.batch.digests import digest
from janus_dola.batch.manifest import Entry
from janus_dola.batch.names import name_of
from janus_dola.batch.records import BadRecord
from janus_dola.batch.settings import Settings, Task
from janus_dola.batch.worker import Drawn, Failed

MAPS = "maps"  # the folder of the layer maps


def names_of(task: Task, settings: Settings) -> tuple[str, str | None]:
    """Where an image and its layer map lie in the folder; there is no map without DoLa."""
    fields = {
        "words": task.prompt,
        "id": task.index if task.id is None else task.id,
        "index": task.index,
        "k": task.k,
        "number": task.number,
        "seed": task.seed,
    }
    name = name_of(settings.name_template, fields, settings.image_format)
    return name, f"{MAPS}/{Path(name).stem}.png" if task.drawing.dola is not None else None


def entry_of(task: Task) -> Entry:
    """What the line of an image says whether it was drawn or not."""
    return {
        "image": task.number,
        "index": task.index,
        "k": task.k,
        "id": task.id,
        "prompt": task.prompt,
        "seed": task.seed,
        "settings": task.drawing.named(),
        **({"extra": task.extra} if task.extra else {}),
    }


def drawn_entry(task: Task, drawn: Drawn, settings: Settings) -> Entry:
    """The line of an image that was drawn; JSD in nats."""
    name, its_map = names_of(task, settings)
    return {
        "file": name,
        "map": its_map if drawn.layer_map is not None else None,
        **entry_of(task),
        "mean_jsd": drawn.mean_jsd,
        "max_jsd": drawn.max_jsd,
        "layers": {str(layer): count for layer, count in drawn.layers.items()},
        "seconds": drawn.seconds,
        "digest": digest(drawn.content),
        "map_digest": digest(drawn.layer_map) if drawn.layer_map is not None else None,
    }


def failed_entry(task: Task, failed: Failed) -> Entry:
    """The line of an image that could not be drawn."""
    return {"file": None, **entry_of(task), "error": failed.error}


def bad_entry(number: int, record: BadRecord) -> Entry:
    """The line of a malformed prompt, under the number that its first image would have had."""
    return {"file": None, "image": number, "index": record.index, "k": None, "prompt": None, "error": record.reason}
