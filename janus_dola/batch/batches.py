"""Which images are drawn together.

It depends on the prompts and the size of a batch alone, so that a run that was interrupted draws the same batches again, and
so does any number of workers.
"""

from collections.abc import Iterable, Iterator

from janus_dola.batch.settings import Task
from janus_dola.settings import DrawSettings

Batch = list[Task]
_WAITING = 8  # batches' worth of images that may wait for others of their settings


def batches(tasks: Iterable[Task], size: int) -> Iterator[Batch]:
    """Tasks of the same settings together, `size` at a time.

    Where settings alternate several batches fill up side by side; the one begun first goes when too many wait.
    """
    filling: dict[DrawSettings, Batch] = {}
    waiting = 0
    for task in tasks:
        batch = filling.setdefault(task.drawing, [])
        batch.append(task)
        waiting += 1
        if len(batch) == size or waiting == _WAITING * size:
            goes = task.drawing if len(batch) == size else next(iter(filling))
            waiting -= len(filling[goes])
            yield filling.pop(goes)
    yield from filling.values()
