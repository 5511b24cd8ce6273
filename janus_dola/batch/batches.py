"""Which images are drawn together.

It depends on the prompts and the size of a batch alone, so that a run that was interrupted draws the same batches again, and
so does any number of workers.
"""

from collections.abc import Iterable, Iterator

from janus_dola.batch.settings import Look, Task

Batch = list[Task]
_WAITING = 8  # batches' worth of images that may wait for others of their look


def batches(tasks: Iterable[Task], size: int) -> Iterator[Batch]:
    """Tasks of one look together, `size` at a time.

    Where looks alternate several batches fill up side by side; the one begun first goes when too many wait.
    """
    filling: dict[Look, Batch] = {}
    waiting = 0
    for task in tasks:
        batch = filling.setdefault(task.look, [])
        batch.append(task)
        waiting += 1
        if len(batch) == size or waiting == _WAITING * size:
            goes = task.look if len(batch) == size else next(iter(filling))
            waiting -= len(filling[goes])
            yield filling.pop(goes)
    yield from filling.values()
