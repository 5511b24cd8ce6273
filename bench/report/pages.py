"""`make report`: committed records into tables and plots, in bench/README.md and docs/speed.md, between markers."""

import json
import re
from pathlib import Path

from bench import RESULTS, ROOT
from bench.report import tables
from bench.report.records import Record, committed
from janus_dola.images.whole_files import write_whole

REPORT = ROOT / "bench" / "README.md"
PERFORMANCE = ROOT / "docs" / "speed.md"
PLOTS = RESULTS / "plots"


def between(name: str) -> re.Pattern[str]:
    """Matches what stands between the markers of this name."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)


def replace(path: Path, name: str, text: str) -> None:
    """Puts the text between the markers in a file."""
    content = path.read_text(encoding="utf-8")
    replaced, count = between(name).subn(lambda _: text, content)
    if count != 1:
        raise ValueError(f"{path} must have the markers {name!r} once, got {count}")
    write_whole(path, replaced.encode())


def file_name(record: Record) -> str:
    """Names the files of a record's plots: "cpu", or the GPU's name."""
    return re.sub(r"[^a-z0-9]+", "_", record.device.lower()).strip("_") if record.on_gpu else "cpu"


def results(records: list[Record]) -> str:
    """Makes the results in bench/README.md: for each record its plots and tables."""
    text = []
    for record in records:
        from bench.report.plots import PLOTS as EACH

        pictures = [f"![{plot.__name__}](results/plots/{file_name(record)}_{plot.__name__}.svg)" for plot in EACH]
        text += [tables.made_with(record), "\n".join(pictures) + "\n", tables.report(record)]
    if not any(record.on_gpu for record in records):
        text.append(f"### GPU\n\n{tables.NOT_MEASURED}: `make gpu-check` on a machine with one fills this in.\n")
    return "\n".join(text)


def main() -> None:
    """Rewrites both files and all plots."""
    from bench.report.plots import draw, learning

    learning(json.loads((RESULTS / "grpo.json").read_text(encoding="utf-8")), PLOTS / "grpo.svg")
    records = committed()
    for record in records:
        draw(record, PLOTS, file_name(record))
    replace(REPORT, "results", results(records))
    replace(PERFORMANCE, "performance", tables.performance(records))


if __name__ == "__main__":
    main()
