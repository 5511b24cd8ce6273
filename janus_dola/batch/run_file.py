"""`run.json`: what a folder was begun with. It is what makes a folder that of a run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_dola.batch.digests import checked, with_checksum
from janus_dola.batch.files import sync_folder, write_whole
from janus_dola.batch.settings import Settings

RUN_FILE = "run.json"
_MAX_BYTES = 2**20


@dataclass(frozen=True)
class RunFile:
    """The settings a folder was begun with, and how many images are drawn at once.

    A batch is part of what decides an image's last bit, so a run that goes on draws the same batches.
    """

    settings: dict[str, Any]  # as `Settings.named` gives them
    batch_size: int

    @classmethod
    def read(cls, outdir: Path) -> "RunFile | None":
        """That of a folder, if there is one.

        Raises:
            ValueError: it is not as a run wrote it.
        """
        path = outdir / RUN_FILE
        if not path.exists():
            return None
        found = None
        if path.is_file():
            with path.open("rb") as file:
                found = checked(file.read(_MAX_BYTES))
        if found is None:
            raise ValueError(
                f"{path} must be as a run wrote it, but was edited or damaged, or comes from elsewhere or from a version "
                "without checksums. Take another --outdir"
            )
        return cls(found["settings"], found["batch_size"])

    def write(self, outdir: Path) -> None:
        """Keeps it in a folder."""
        fields = with_checksum({"settings": self.settings, "batch_size": self.batch_size})
        write_whole(outdir, RUN_FILE, json.dumps(fields, indent=1, ensure_ascii=False).encode("utf-8") + b"\n")
        sync_folder(outdir)

    def differences(self, settings: Settings) -> list[str]:
        """Which settings differ from these, in words; a dtype that is not given is the same."""
        now = settings.named()
        if settings.dtype is None:
            now["dtype"] = self.settings.get("dtype")
        names = sorted({*self.settings, *now}, key=[*now, *self.settings].index)
        return [
            f"{name} {self.settings.get(name)}, now {now.get(name)}"
            for name in names
            if self.settings.get(name) != now.get(name)
        ]
