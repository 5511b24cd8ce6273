"""Draws any number of prompts into a folder, and goes on where an earlier run of the same command stopped."""

import signal
import sys
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType

from tqdm.auto import tqdm

from janus_dola.arguments import HINT_AT_MINI, MINI, integer, shown
from janus_dola.batch.folder import PARTIAL, clear_disk_errors, locked_folder
from janus_dola.batch.index_page import write_page
from janus_dola.batch.manifest import MANIFEST, MAPS, Manifest, bad_entry, image_entry, names_of
from janus_dola.batch.prompts import ImageTask, PromptRecord, Prompts, PromptSource
from janus_dola.batch.ray_pool import RayPool
from janus_dola.batch.resume import DONE, FAILED, MISSING, look_into, take_inventory
from janus_dola.batch.run_settings import RunFile, RunSettings
from janus_dola.batch.worker import Batch, BatchWorker, EncodedImage, Results, batches
from janus_dola.compute import Compute
from janus_dola.images.whole_files import sync_folder, write_whole
from janus_dola.models.checkpoint.hub import public_name
from janus_dola.pipeline import JanusDoLa

_SECONDS_BETWEEN_LINES = 60  # between lines of progress in a log file
_LINES_AT_ONCE = 512
_BAD_COUNTED = 1000  # bad prompts after which a run that skips none stops reading
_KEYS_NAMED = 8  # keys that set nothing, named in a warning


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    prompts: int
    images: int  # bad prompts have none
    drawn: int  # by this run
    kept: int  # drawn by earlier runs
    failed: int  # images that could not be drawn, and bad prompts
    left: int  # not reached, after Ctrl-C

    @property
    def interrupted(self) -> bool:
        """Returns whether Ctrl-C ended the run before its time."""
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

    Called again with the same arguments, it draws what is missing, and ends with the same images, byte for byte, as a run
    that was never interrupted on the same kind of device.

    Args:
        prompts: a file (.json, .jsonl, .csv, .tsv, .txt), a folder with a .txt file per prompt, "-" for stdin, or strings
            and mappings with the keys of a JSON line: prompt, id, seed, parallel_size, and those in `settings.SETTINGS`.
            Other keys are kept in the manifest.
        outdir: is made if it is not there.
        settings: what is drawn; a prompt's own settings go first.
        compute: what it is drawn on.
        prompt_key: the key or column that holds the prompt; None is "prompt", however it is capitalised.
        max_prompts: draws only the first ones; None is all.
        skip_bad: records bad prompts as failed; without it they stop the run before anything is drawn.
        overwrite: deletes images in the folder that runs with other settings or prompts made. The folder may hold other
            files, which are left alone.
        progress: shows a bar with images per second, the time left and failures.
        pipe: a model in memory, instead of loading one.
    Raises:
        ValueError: prompts are malformed, a setting is out of range, the folder was made with other settings, or it holds
            files that no run made; nothing has been drawn then.
        OSError: the prompts cannot be read, the model is not there, or the folder cannot be written to.
        ImportError: `compute` needs Ray, and it is not installed.
    """
    max_prompts = None if max_prompts is None else integer("max_prompts", max_prompts, 1, 2**63)
    folder = Path(outdir)
    run_prompts = _RunPrompts(PromptSource(prompts, prompt_key), max_prompts, settings, skip_bad)
    look_into(folder, overwrite)  # so that nothing is made where it is refused
    with locked_folder(folder):
        before = look_into(folder, overwrite)
        differences = [] if before is None else before.differences(settings)
        if differences and not overwrite:
            raise ValueError(
                f"outdir {folder} was made with other settings: {'; '.join(differences)}. "
                "Take another --outdir, or --overwrite what is there"
            )
        before = None if differences else before
        if before is not None:
            settings = replace(settings, dtype=before.settings["dtype"])
            if before.entropy is not None:
                run_prompts.source.entropy = before.entropy
        with clear_disk_errors(folder):
            manifest = Manifest(folder, run_prompts.numbers)
        if manifest.ignored:
            warnings.warn(
                f"{manifest.ignored} lines of {folder / MANIFEST} are not as a run wrote them; "
                "what they stand for is drawn again",
                stacklevel=2,
            )
        with closing(manifest), _first_ctrl_c() as interrupt:
            run = _Run(folder, run_prompts, settings, compute, manifest, interrupt, progress)
            summary = run.draw(before, overwrite, pipe)
    if run_prompts.source.changed():
        warnings.warn(
            f"{run_prompts.source.name} changed during the run, which drew what it held at the start; "
            "the same command again draws what is new",
            stacklevel=2,
        )
    return summary


@contextmanager
def _first_ctrl_c() -> Iterator[threading.Event]:
    """Yields an event that the first Ctrl-C sets; the second raises KeyboardInterrupt. Only the main thread hears them."""
    pressed = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        tqdm.write("finishing the batch in hand; Ctrl-C again stops at once", file=sys.stderr)

    heard = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, note) if heard else None
    try:
        yield pressed
    finally:
        if before is not None:  # None also where the handler was not Python's
            signal.signal(signal.SIGINT, before)


class _RunPrompts:
    """The prompts of a run, looked through once.

    A ValueError says that there are none, bad ones and no leave to skip them, two images with one file name, or one that
    the locale cannot write.
    """

    def __init__(self, source: PromptSource, max_prompts: int | None, settings: RunSettings, skip_bad: bool) -> None:
        self.source, self._max_prompts, self._settings = source, max_prompts, settings
        self.prompts = self.images = self.numbers = self.bad = 0  # bad prompts take numbers, too
        first_fault, kept_keys, names = "", dict[str, None](), set[int]()
        comments, first_comment = 0, ""
        # Without a template names differ, and UTF-8 has them all.
        checks_names = settings.name_template is not None or sys.getfilesystemencoding() != "utf-8"
        for record in self:
            self.prompts, self.images = self.prompts + 1, self.images + len(record.tasks)
            self.numbers = record.first + (len(record.tasks) or settings.parallel_size)
            for task in record.tasks if checks_names else ():
                name = names_of(task, settings)[0]
                # A disk that ignores case takes names for one that differ in it alone.
                key = hash(unicodedata.normalize("NFC", name).casefold())
                if key in names:
                    raise ValueError(f"name_template must tell all images apart, but two are {name}: add {{number}}")
                names.add(key)
            if source.is_text and record.tasks and record.tasks[0].prompt.lstrip().startswith(("#", "//")):
                comments, first_comment = comments + 1, first_comment or record.tasks[0].prompt
            if record.fault:
                self.bad += 1
                first_fault = first_fault or record.fault
                if self.bad == _BAD_COUNTED and not skip_bad:
                    break
            elif len(kept_keys) < _KEYS_NAMED:
                kept_keys.update(dict.fromkeys(record.tasks[0].extra))
        if comments:
            warnings.warn(
                f"{source.name}: lines that begin with # or // are prompts like others; there are {comments}, the first is "
                f"{shown(first_comment)}",
                stacklevel=3,
            )
        if self.prompts == 0:
            raise ValueError(f"{source.name} must hold at least one prompt, got none")
        if self.bad and not skip_bad:
            more = f"; {self.bad} of {self.prompts} prompts read are bad" if self.bad > 1 else ""
            raise ValueError(f"{source.name} {first_fault}{more}. --skip-bad draws the others")
        if self.images == 0:
            raise ValueError(f"{source.name} must hold a prompt that can be drawn, but {first_fault}")
        if kept_keys:
            keys = ", ".join(map(shown, list(kept_keys)[:_KEYS_NAMED]))
            warnings.warn(f"{source.name}: keys that set nothing are kept in the manifest: {keys}", stacklevel=3)

    def __iter__(self) -> Iterator[PromptRecord]:
        return self.source.read(self._settings, self._max_prompts)

    def tasks(self) -> Iterator[ImageTask]:
        """Yields the images, in order."""
        return (task for record in self for task in record.tasks)


@dataclass
class _Run:
    """One run, in a folder that it alone writes to."""

    outdir: Path
    prompts: _RunPrompts
    settings: RunSettings
    compute: Compute
    manifest: Manifest
    interrupt: threading.Event
    progress: bool

    def draw(self, before: RunFile | None, overwrite: bool, pipe: JanusDoLa | None) -> Summary:
        """Looks at what earlier runs left, draws what is missing, then makes the page.

        `before` is what the folder was begun with, if its settings are this run's.
        """
        prompts, self._failed = self.prompts, self.prompts.bad
        with self._bar("checking", shown=before is not None) as bar:
            self._states, others, files = take_inventory(
                self.outdir, self.manifest, prompts, self.settings, before is not None, overwrite, bar.update
            )
        kept = self._states.count(DONE)
        left = prompts.images - kept
        log = partial(tqdm.write, file=sys.stderr) if self.progress else _silent
        if left and self.settings.model == MINI:
            log(HINT_AT_MINI)
        with self._pool(pipe, log) if left else nullcontext(None) as pool:
            with clear_disk_errors(self.outdir):  # what other runs made goes once the model is there
                for name in files:
                    (self.outdir / name).unlink(missing_ok=True)
                if others:
                    self.manifest.forget(others)
            if pool is not None:
                left -= self._draw_missing(pool, before, kept)
        with clear_disk_errors(self.outdir):
            bad = (bad_entry(record) for record in (prompts if prompts.bad else ()) if record.fault)
            while part := list(islice(bad, _LINES_AT_ONCE)):
                self.manifest.append(part)
            self.manifest.compact()
            shown_settings = {**self.settings.to_json(), "model": public_name(self.settings.model)}
            write_page(self.outdir, self.manifest, shown_settings)
        drawn = self._states.count(DONE) - kept
        return Summary(prompts.prompts, prompts.images, drawn, kept, self._failed, left)

    def _pool(
        self, pipe: JanusDoLa | None, log: Callable[[str], None]
    ) -> AbstractContextManager[BatchWorker | RayPool]:
        if self.compute.uses_ray:
            return RayPool(self.settings, self.compute, log)
        if pipe is None:
            return nullcontext(BatchWorker.load(self.settings, self.compute))
        return nullcontext(BatchWorker(pipe, self.settings, self.compute))

    def _draw_missing(self, pool: BatchWorker | RayPool, before: RunFile | None, kept: int) -> int:
        """Returns how many images were drawn or failed."""
        size = self.compute.batch_size or (pool.batch_size if before is None else before.batch_size)
        self.settings = replace(self.settings, dtype=pool.dtype)
        with clear_disk_errors(self.outdir):
            RunFile(self.settings.to_json(), size, self.prompts.source.entropy).write(self.outdir)
            (self.outdir / MAPS).mkdir(exist_ok=True)
        taken = 0
        with self._bar("drawing", kept) as bar:
            for batch, results in pool.run(self._missing(size)):
                with clear_disk_errors(self.outdir):
                    stored = self._store(batch, results)
                taken += stored
                bar.set_postfix(failed=self._failed, refresh=False)
                bar.update(stored)
        return taken

    def _missing(self, size: int) -> Iterator[Batch]:
        """Yields batches with a missing image, as whole as they were planned; then what had failed before, once more."""
        for batch in batches(self.prompts.tasks(), size):
            if self.interrupt.is_set():
                return
            if any(self._states[task.number] == MISSING for task in batch):
                for task in batch:
                    if self._states[task.number] == FAILED:  # drawn again with its batch
                        self._states[task.number] = MISSING
                yield batch
        failed = (task for task in self.prompts.tasks() if self._states[task.number] == FAILED)
        for batch in batches(failed, size):
            if self.interrupt.is_set():
                return
            yield batch

    def _store(self, batch: Batch, results: Results) -> int:
        """Writes what is new, and returns how many images that are.

        Lines come before files, so that whatever lies in the folder is known as ours by its digest.
        """
        entries, contents = [], dict[str, bytes]()
        for task, result in zip(batch, results, strict=True):
            if self._states[task.number] == DONE:
                continue
            entry = image_entry(task, result, self.settings)
            entries.append(entry)
            if not isinstance(result, EncodedImage):
                self._failed += 1
                continue
            contents[entry["file"]] = result.content
            if result.layer_map is not None:
                contents[entry["map"]] = result.layer_map
            self._states[task.number] = DONE
        self.manifest.append(entries)
        for name, content in contents.items():
            write_whole(self.outdir / name, content, partial=self.outdir / PARTIAL)
        sync_folder(self.outdir)
        sync_folder(self.outdir / MAPS)
        return len(entries)

    def _bar(self, what: str, initial: int = 0, shown: bool = True) -> tqdm:
        """Returns a bar for a terminal; in a log file it writes a line now and then."""
        interval = 0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
        total, silent = self.prompts.images, not (self.progress and shown)
        return tqdm(desc=what, total=total, initial=initial, unit="image", disable=silent, mininterval=interval)


def _silent(message: str) -> None:
    pass
