"""Raw records of `make bench` and `make gpu-check`, as pytest-benchmark writes them, read into rows of seconds per call."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from bench import RESULTS
from bench.speed import floor


@dataclass(frozen=True)
class Row:
    """One benchmark. Seconds of one call: median and quartiles over the rounds."""

    name: str  # the test's name with its case
    test: str
    facts: dict  # shape, images, backend, ... of the case
    median: float
    low: float
    high: float
    floor: float | None  # seconds, where the benchmark says what work it needs

    def has(self, **facts: object) -> bool:
        """Says whether these are facts of the case."""
        return all(self.facts.get(name) == value for name, value in facts.items())


@dataclass(frozen=True)
class Record:
    """All benchmarks of one run."""

    made_with: dict[str, str]
    ceilings: dict
    rows: list[Row]

    @property
    def device(self) -> str:
        """Returns the processor it was made on."""
        return self.made_with["device"]

    @property
    def on_gpu(self) -> bool:
        """Says whether the processor is a GPU."""
        return not self.device.startswith("CPU")

    @property
    def has_bfloat16(self) -> bool:
        """Says whether the processor multiplies bfloat16 in units of its own: faster than float32."""
        rates = self.ceilings["operations_per_second"]
        return rates["bfloat16"] > rates["float32"]

    def select(self, test: str, **facts: object) -> list[Row]:
        """Returns the rows of a test with these facts, in the order they were run."""
        return [row for row in self.rows if row.test == test and row.has(**facts)]

    def median(self, test: str, **facts: object) -> float | None:
        """Returns the median of the one row with these facts; None if it was not measured."""
        rows = self.select(test, **facts)
        if len(rows) > 1:
            raise LookupError(f"{len(rows)} rows of {test} have {facts}")
        return rows[0].median if rows else None


def read(path: Path) -> Record:
    """Reads the file that `--benchmark-json` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    ceilings, rows = content["ceilings"], []
    for benchmark in content["benchmarks"]:
        facts, stats = benchmark["extra_info"], benchmark["stats"]
        calls = facts["calls"]
        least = None
        if "bytes" in facts:
            rates = ceilings["operations_per_second"]
            rate = rates.get(facts["dtype"], rates["float32"])  # packed float16 is multiplied in float32
            least = floor.Work(facts["bytes"], facts["operations"]).seconds(ceilings["bytes_per_second"], rate)
        median, low, high = (stats[key] / calls for key in ("median", "q1", "q3"))
        rows.append(Row(benchmark["name"], benchmark["name"].split("[")[0], facts, median, low, high, least))
    return Record(content["machine_info"], ceilings, rows)


def committed() -> list[Record]:
    """Reads the records in bench/results, CPUs first; those made with the same, such as stages of a check, are one."""
    records: dict[tuple, Record] = {}
    for record in map(read, sorted(RESULTS.glob("bench_*.json"))):
        made_with = tuple(sorted((name, fact) for name, fact in record.made_with.items() if name != "date"))
        rows = records[made_with].rows if made_with in records else []
        records[made_with] = replace(record, rows=rows + record.rows)
    return sorted(records.values(), key=lambda record: (record.on_gpu, record.device))
