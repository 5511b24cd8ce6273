"""Draws any number of prompts into a folder, and goes on where an earlier run of the same command stopped."""

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType

from tqdm.auto import tqdm

from janus_dola.arguments import HINT_AT_MINI, MINI, integer, shown
from janus_dola.batch.files import (
    MANIFEST,
    Manifest,
    RunFile,
    clear_disk_errors,
    locked_folder,
    sync_folder,
    write_whole,
)
from janus_dola.batch.page import write_page
from janus_dola.batch.records import BadRecord, Numbered, Prompts, Records, numbered, open_records
from janus_dola.batch.resume import (
    DONE,
    FAILED,
    MAPS,
    MISSING,
    bad_entry,
    delete,
    drawn_entry,
    failed_entry,
    look_into,
    names_of,
    replaceable,
    states_of,
)
from janus_dola.batch.settings import Distinct, RunSettings, Task
from janus_dola.batch.worker import Batch, Compute, Failed, InProcess, Pool, Results, batches
from janus_dola.models.checkpoint.hub import public_name
from janus_dola.pipeline import JanusDoLa


class Interrupt(AbstractContextManager["Interrupt"]):
    """Notes the first Ctrl-C in `requested`; the second raises KeyboardInterrupt. Does nothing outside the main thread."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interrupt":
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._noted)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _noted(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        tqdm.write("finishing the batch in hand; Ctrl-C again stops at once", file=sys.stderr)


_SECONDS_BETWEEN_LINES = 60  # of progress in a log file
_LINES_AT_ONCE = 512
_BAD_COUNTED = 1000
_KEYS_NAMED = 8  # of those that set nothing


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    prompts: int
    images: int  # of the well-formed prompts
    drawn: int  # by this run
    kept: int  # drawn by earlier runs
    failed: int  # images that could not be drawn, and malformed prompts
    left: int  # not reached, after Ctrl-C

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it before its time."""
        return self.left > 0


def run_batch(
    prompts: Prompts,
    outdir: str | Path,
    settings: RunSettings = RunSettings(),  # noqa: B008 (frozen)
    compute: Compute = Compute(),  # noqa: B008 (frozen)
    *,
    prompt_key: str | None = None,
    max_prompts: int | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    pipe: JanusDoLa | None = None,
) -> Summary:
    """Draws prompts into a folder: images, `manifest.jsonl`, layer maps and a page to look at, `index.html`.

    Called again with the same arguments it draws what is missing, and ends with the images, byte for byte, of a run that was
    never interrupted on the same kind of device.

    Args:
        prompts: a file (.json, .jsonl, .csv, .tsv, .txt), a folder with a .txt file for each, "-" for stdin, or strings and
            mappings with the keys of a JSON line: prompt, id, seed, parallel_size, and those of `settings.SETTINGS`. Other
            keys are kept in the manifest.
        outdir: made if need be.
        settings: what is drawn; a prompt's own ones go first.
        compute: on what.
        prompt_key: the key or column that holds the prompt; None is "prompt", however it is capitalised.
        max_prompts: only the first ones; None is all.
        skip_bad: malformed records are recorded as failed; without it they stop the run before anything is drawn.
        overwrite: images in the folder that runs with other settings or prompts made are deleted, and the folder may hold
            other files, which are left alone.
        progress: shows a bar with images per second, the time left and failures.
        pipe: a model in memory, instead of loading one.
    Raises:
        ValueError: the prompts are malformed, a setting is out of range, the folder was made with other settings, or
            it holds files that are not of a run; nothing has been drawn then.
        OSError: the prompts cannot be read, the model is not there, or the folder cannot be written to.
        ImportError: Ray is asked for and not installed.
    """
    if max_prompts is not None:
        max_prompts = integer("max_prompts", max_prompts, 1, 2**63)
    folder, records = Path(outdir), open_records(prompts, prompt_key)
    order = _Order(records, max_prompts, settings, skip_bad)
    look_into(folder, overwrite)  # so that nothing is made where it is refused
    with locked_folder(folder):
        before = look_into(folder, overwrite)
        differences = before.differences(settings) if before is not None else []
        if differences and not overwrite:
            raise ValueError(
                f"outdir {folder} was made with other settings: {'; '.join(differences)}. "
                "Take another --outdir, or --overwrite what is there"
            )
        if before is not None and not differences:
            settings = settings.with_dtype(before.settings["dtype"])
        with clear_disk_errors(folder):
            manifest = Manifest(folder, order.numbers)
        with closing(manifest), Interrupt() as interrupt:
            run = _Run(folder, order, settings, manifest, interrupt, progress)
            if before is not None and not differences:
                run.check(overwrite)
            else:
                before = None
                run.begin_anew()
            summary = run.draw(compute, before, pipe)
    order.say_if_changed()
    return summary


class _Order:
    """The prompts of a run, looked through once.

    Raises:
        ValueError: there are none, or bad ones and no leave to skip them.
    """

    def __init__(self, records: Records, max_prompts: int | None, settings: RunSettings, skip_bad: bool) -> None:
        self._records, self._max_prompts, self._settings = records, max_prompts, settings
        self.prompts = self.images = self.numbers = self.bad = 0  # numbers are taken up by bad prompts, too
        first_reason, kept, distinct = "", dict[str, None](), Distinct()
        for first, record, tasks in self:
            self.prompts, self.images = self.prompts + 1, self.images + len(tasks)
            if settings.name_template is not None:
                for task in tasks:
                    distinct.add(names_of(task, settings)[0])
            self.numbers = first + (len(tasks) or settings.parallel_size)
            if isinstance(record, BadRecord):
                self.bad += 1
                first_reason = first_reason or record.reason
                if self.bad == _BAD_COUNTED and not skip_bad:
                    break
            elif len(kept) < _KEYS_NAMED:
                kept.update(dict.fromkeys(record.extra))
        if self.prompts == 0:
            raise ValueError(f"{records.name} must hold at least one prompt, got none")
        if self.bad and not skip_bad:
            more = f"; {self.bad} of {self.prompts} prompts read are bad" if self.bad > 1 else ""
            raise ValueError(f"{records.name} {first_reason}{more}. --skip-bad draws the others")
        if self.images == 0:
            raise ValueError(f"{records.name} must hold a prompt that can be drawn, but {first_reason}")
        if kept:
            names = ", ".join(map(shown, list(kept)[:_KEYS_NAMED]))
            warnings.warn(f"{records.name}: keys that set nothing are kept in the manifest: {names}", stacklevel=3)

    def __iter__(self) -> Iterator[Numbered]:
        return numbered(islice(self._records.read(self._settings), self._max_prompts), self._settings)

    def say_if_changed(self) -> None:
        """Warns when the prompts are no longer what they were when the run began."""
        if self._records.changed():
            warnings.warn(
                f"{self._records.name} changed during the run, which drew what it held at the start; "
                "the same command again draws what is new",
                stacklevel=3,
            )

    def tasks(self) -> Iterator[Task]:
        """The images, in order."""
        return (task for _, _, tasks in self for task in tasks)


class _Run:
    """One run, in a folder that it alone writes to."""

    def __init__(
        self,
        outdir: Path,
        order: _Order,
        settings: RunSettings,
        manifest: Manifest,
        interrupt: Interrupt,
        progress: bool,
    ) -> None:
        self._outdir, self._order, self._settings = outdir, order, settings
        self._manifest, self._interrupt, self._progress = manifest, interrupt, progress
        self._states = bytearray(order.numbers)  # all MISSING
        self._failed = order.bad
        self._replaced: list[str] = []  # files of earlier runs
        if manifest.ignored:
            warnings.warn(
                f"{manifest.ignored} lines of {outdir / MANIFEST} are not as a run wrote them; "
                "what they stand for is drawn again",
                stacklevel=3,
            )

    def begin_anew(self) -> None:
        """Finds what earlier runs made here, to be deleted once the model is loaded."""
        tasks = self._order.tasks()
        wanted = (name for task in tasks for name in names_of(task, self._settings) if name is not None)
        self._replaced = replaceable(self._outdir, self._manifest, wanted)

    def check(self, overwrite: bool) -> None:
        """Looks at what an earlier run with the same settings left."""
        with self._bar("checking", self._order.images) as bar:
            self._states = states_of(
                self._outdir, self._manifest, self._order, self._settings, len(self._states), overwrite, bar.update
            )

    def draw(self, compute: Compute, before: RunFile | None, pipe: JanusDoLa | None) -> Summary:
        """Draws what is missing, then makes the page."""
        kept = self._states.count(DONE)
        left = self._order.images - kept
        if left:
            log = partial(tqdm.write, file=sys.stderr) if self._progress else _silent
            if self._settings.model == MINI:
                log(HINT_AT_MINI)
            with _pool(self._settings, compute, pipe, log) as pool:
                left -= self._draw_missing(pool, compute, before, kept)
        with clear_disk_errors(self._outdir):
            self._record_bad()
            self._manifest.compact()
            shown_settings = {**self._settings.named(), "model": public_name(self._settings.model)}
            write_page(self._outdir, self._manifest, shown_settings)
        drawn = self._states.count(DONE) - kept
        return Summary(self._order.prompts, self._order.images, drawn, kept, self._failed, left)

    def _record_bad(self) -> None:
        """Gives each malformed prompt its line."""
        if self._order.bad:
            bad = ((first, record) for first, record, _ in self._order if isinstance(record, BadRecord))
            while part := list(islice(bad, _LINES_AT_ONCE)):
                self._manifest.append(bad_entry(first, record) for first, record in part)

    def _draw_missing(self, pool: Pool, compute: Compute, before: RunFile | None, kept: int) -> int:
        """Returns how many images were drawn or failed."""
        size = compute.batch_size or (before.batch_size if before is not None else pool.batch_size)
        self._settings = self._settings.with_dtype(pool.dtype)
        with clear_disk_errors(self._outdir):
            if before is None:  # nothing there is of this run
                numbers = [entry["image"] for entry in self._manifest]
                delete(self._outdir, self._manifest, self._replaced, numbers)
            RunFile(self._settings.named(), size).write(self._outdir)
            (self._outdir / MAPS).mkdir(exist_ok=True)
        taken = 0
        with self._bar("drawing", self._order.images, kept) as bar:
            for batch, results in pool.run(self._missing(size)):
                with clear_disk_errors(self._outdir):
                    stored = self._store(batch, results)
                taken += stored
                bar.set_postfix(failed=self._failed, refresh=False)
                bar.update(stored)
        return taken

    def _missing(self, size: int) -> Iterator[Batch]:
        """Batches with a missing image, as whole as they were planned; then what had failed before, once more."""
        for batch in batches(self._order.tasks(), size):
            if self._interrupt.requested:
                return
            if any(self._states[task.number] == MISSING for task in batch):
                for task in batch:
                    if self._states[task.number] == FAILED:  # its turn is now
                        self._states[task.number] = MISSING
                yield batch
        failed = (task for task in self._order.tasks() if self._states[task.number] == FAILED)
        for batch in batches(failed, size):
            if self._interrupt.requested:
                return
            yield batch

    def _store(self, batch: Batch, results: Results) -> int:
        """Writes what is new, and returns how many images that are.

        Lines before files, so that whatever lies in the folder is known as ours by its digest.
        """
        entries, contents = [], dict[str, bytes]()
        for task, result in zip(batch, results, strict=True):
            if self._states[task.number] == DONE:
                continue
            if isinstance(result, Failed):
                entries.append(failed_entry(task, result))
                self._failed += 1
                continue
            entry = drawn_entry(task, result, self._settings)
            contents[entry["file"]] = result.content
            if result.layer_map is not None:
                contents[entry["map"]] = result.layer_map
            entries.append(entry)
            self._states[task.number] = DONE
        self._manifest.append(entries)
        for name, content in contents.items():
            write_whole(self._outdir, name, content)
        sync_folder(self._outdir)
        sync_folder(self._outdir / MAPS)
        return len(entries)

    def _bar(self, what: str, total: int, initial: int = 0) -> tqdm:
        """A bar on a terminal; in a log file a line now and then."""
        return tqdm(
            desc=what,
            total=total,
            initial=initial,
            unit="image",
            disable=not self._progress,
            mininterval=0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES,
        )


def _silent(message: str) -> None:
    pass


def _pool(settings: RunSettings, compute: Compute, pipe: JanusDoLa | None, log: Callable[[str], None]) -> Pool:
    if compute.uses_ray:
        from janus_dola.batch.ray_pool import RayPool

        return RayPool(settings, compute, log)
    return InProcess(settings, compute, pipe)
