"""Whose a folder is, and what in it a run may replace.

A run writes into a folder that is empty or that a run began, as its `run.json` shows. With `--overwrite` it takes others,
too, and deletes there what runs made: files that a manifest names with the digest that they still have.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from janus_dola.batch.digests import file_digest
from janus_dola.batch.entries import MAPS
from janus_dola.batch.files import WORK, telling
from janus_dola.batch.manifest import NAME as MANIFEST
from janus_dola.batch.manifest import Entry, Manifest, is_manifest
from janus_dola.batch.page import DATA, PAGE, is_of_page
from janus_dola.batch.run_file import RUN_FILE, RunFile

_WRITTEN = (WORK, MAPS, MANIFEST, PAGE, DATA, RUN_FILE)  # besides images, of which a link is replaced by the image


def look_into(outdir: Path, overwrite: bool) -> RunFile | None:
    """What the run that began a folder had; None where there was no run. Writes nothing.

    Raises:
        ValueError: the folder holds what is not provably of a run, or a link in place of what a run writes; or, with
            `overwrite`, what would be in the way.
        OutDirError: it cannot be read.
    """
    if not outdir.exists():
        return None
    with telling(outdir):
        link = next((name for name in _WRITTEN if (outdir / name).is_symlink()), None)
        if link is not None:
            raise ValueError(
                f"outdir {outdir} holds a link {link}, which is not followed. Move it away, or take another --outdir"
            )
        with os.scandir(outdir) as inside:
            other = next((entry.name for entry in inside if entry.name != WORK), None)
        before = RunFile.read(outdir)
        if before is None and other is not None and not overwrite:
            raise ValueError(
                f"outdir {outdir} must be empty or begun by an earlier run, but holds {other!r} and no run.json. "
                "Take another --outdir; --overwrite replaces what earlier runs made there, and leaves the rest"
            )
        in_the_way = [name for name in (PAGE, DATA) if os.path.lexists(outdir / name) and not is_of_page(outdir / name)]
        if before is None and os.path.lexists(outdir / MANIFEST) and not is_manifest(outdir / MANIFEST):
            in_the_way.append(MANIFEST)
        if in_the_way:
            raise ValueError(
                f"outdir {outdir} holds a file {in_the_way[0]} that is not as a run wrote it. "
                "Move it away, or take another --outdir"
            )
        return before


def replaceable(outdir: Path, manifest: Manifest, wanted: Iterable[str]) -> list[str]:
    """The files that the manifest names and that nobody changed since, by name.

    Args:
        wanted: names of the files that a new run will write.
    Raises:
        ValueError: one of those is there and not of a run.
    """
    ours = dict.fromkeys(name for entry in manifest for name in unchanged(outdir, entry))
    theirs = next((name for name in wanted if name not in ours and os.path.lexists(outdir / name)), None)
    if theirs is not None:
        raise ValueError(
            f"outdir {outdir} holds a file {theirs} that is not as an earlier run wrote it, and this run would write one. "
            "Move it away, or take another --outdir"
        )
    return list(ours)


def unchanged(outdir: Path, entry: Entry) -> Iterator[str]:
    """The files of a line of the manifest, image and map, that still have the digest that it gives."""
    for kind, its_digest in (("file", "digest"), ("map", "map_digest")):
        name = entry.get(kind)
        if name and file_digest(outdir / name) == entry[its_digest]:
            yield name
