"""Tables of bench/README.md and of docs/speed.md, from records alone."""

from collections.abc import Callable, Iterable

from bench.report.records import Record, Row

NOT_MEASURED = "not measured"
_ON_A_CPU = ("float32", "float16")  # float16 is packed
_ROWS_BOUND_BY_CALLS = 32  # of the mini model on a CPU, two an image and code (bench/findings.md, the window "auto")


def markdown(columns: list[str], rows: Iterable[list]) -> str:
    """Formats a table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"


def time(seconds: float) -> str:
    """Formats seconds by three digits and a unit that suits."""
    unit, name = next(
        (unit, name) for unit, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")) if seconds >= unit or unit == 1e-6
    )
    return f"{seconds / unit:.3g} {name}"


def spread(row: Row) -> str:
    """Formats median and quartiles."""
    return f"{time(row.median)} ({time(row.low)} - {time(row.high)})"


def _measures_python(record: Record, row: Row) -> bool:
    """Says whether a row takes as long as Python does to call its operations, whatever the machine could do."""
    mini = "mini" in (row.facts.get("shape"), row.facts.get("model"))
    return not record.on_gpu and mini and 2 * row.facts["images"] * row.facts.get("window", 1) <= _ROWS_BOUND_BY_CALLS


def _over_floor(record: Record, row: Row) -> list[str]:
    """Formats the floor, and how often the median has room for it."""
    if _measures_python(record, row):
        return ["", "calls"]
    return [time(row.floor), f"{row.median / row.floor:.2f} x"] if row.floor else ["", ""]


def _listing(record: Record, test: str, facts: list[str]) -> str:
    rows = _shown(record, test)
    body = [[*(row.facts[name] for name in facts), spread(row), *_over_floor(record, row)] for row in rows]
    return markdown([*facts, "median (quartiles)", "floor", "over floor"], body) if body else ""


def _shown(record: Record, test: str) -> list[Row]:
    """Returns the rows of a test, without bfloat16 on a CPU that has no units for it: torch emulates it there."""
    return [row for row in record.select(test) if record.has_bfloat16 or row.facts.get("dtype") != "bfloat16"]


def _images(record: Record) -> str:
    rows = record.select("test_image")
    if not rows:
        return ""
    facts = ["model", "dtype", "images", "loop", "window", "way"]
    body = [
        [*(row.facts[name] for name in facts), f"{row.facts['codes_a_pass']:.2f}", spread(row),
         f"{row.facts['images'] / row.median:.3g}"]
        for row in rows
    ]  # fmt: skip
    columns = [*facts[:-1], "decoding", "codes per pass", "median (quartiles)", "images per second"]
    return markdown(columns, body)


SECTIONS: dict[str, tuple[str, Callable[[Record], str]]] = {
    "Head stage": (
        "Hidden states of all layers to sampled code; `candidates` beside the final layer; guidance 5, alpha 0.1. "
        "On a CPU without AMX weights in bfloat16 are widened to float32 at every call; those in float16 are packed.",
        lambda record: "\n".join(
            filter(
                None,
                (
                    _listing(record, "test_head_stage", ["shape", "dtype", "images", "candidates", "backend"]),
                    _listing(record, "test_logits", ["shape", "images", "logits"]),
                ),
            )
        ),
    ),
    "Sweep": (
        "Logits of 5 layers to sampled code. The floor counts what is read, not exponentials and logarithms.",
        lambda record: _listing(record, "test_sweep", ["shape", "images", "backend"]),
    ),
    "Launches": (
        "The fused kernels, each alone.",
        lambda record: _listing(record, "test_launch", ["shape", "images", "launch"]),
    ),
    "Pass": (
        "Over images half way drawn: `window` codes of each fed, the codes that follow decided.",
        lambda record: _listing(record, "test_step", ["model", "dtype", "images", "window", "launch", "way"]),
    ),
    "Whole images": (
        "Prompt to pictures. On a CPU calls from Python take most of the time of few images of the mini model.",
        _images,
    ),
    "Tokens of text": (
        'By transformers\' `generate`, random weights; DoLa and the old one (legacy) with `dola_layers="high"`.',
        lambda record: _listing(record, "test_text", ["shape", "dtype", "sequences", "way"]),
    ),
    "Pieces of other libraries": (
        "What they do of the stage, beside our sweep, which does all of it.",
        lambda record: _listing(record, "test_piece", ["piece", "images"]),
    ),
}


def made_with(record: Record) -> str:
    """Says which machine a record was made on, and what it was measured to be capable of."""
    made = ", ".join(f"{name} {value}" for name, value in record.made_with.items() if name != "device")
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in record.ceilings["operations_per_second"].items())
    left_out = "" if record.has_bfloat16 else " It has no units for bfloat16: rows in bfloat16 are left out."
    return (
        f"### {record.device}\n\nMade with {made}. Measured ceilings: {'read' if record.on_gpu else 'copy'} "
        f"{record.ceilings['bytes_per_second'] / 1e9:.3g} GB/s; matrix products, TFLOP/s: {rates}.{left_out}\n"
    )


def report(record: Record) -> str:
    """Makes all tables of one record, and names behind them what it did not measure."""
    sections = {name: (what, table(record)) for name, (what, table) in SECTIONS.items()}
    text = [f"#### {name}\n\n{what}\n\n{table}" for name, (what, table) in sections.items() if table]
    left_out = [name for name, (_, table) in sections.items() if not table]
    if left_out:
        text.append(f"{NOT_MEASURED.capitalize()} here: {', '.join(left_out)}.\n")
    return "\n".join(text)


def _ratio(over: float | None, under: float | None) -> str:
    return NOT_MEASURED if over is None or under is None else f"{over / under:.2f} x"


def on_a_cpu(record: Record) -> str:
    """Makes the table of ratios on a CPU in docs/speed.md."""

    def stage(backend: str, dtype: str) -> float | None:
        return record.median("test_head_stage", shape="1B", images=4, candidates=4, backend=backend, dtype=dtype)

    def image(model: str, images: int, loop: str, way: str, dtype: str) -> float | None:
        window = "auto" if loop.startswith("ours") else 1
        facts = {"model": model, "dtype": dtype, "images": images, "loop": loop, "way": way, "window": window}
        return record.median("test_image", **facts)

    def step(model: str, way: str, dtype: str) -> float | None:
        return record.median("test_step", model=model, dtype=dtype, images=4, window=1, way=way)

    reference = stage("reference", "float32")
    rows = [
        [
            "head stage, 1B shape, 5 layers, 4 images: reference over batched torch",
            *(_ratio(reference, stage("torch", dtype)) for dtype in _ON_A_CPU),
        ]
    ]
    for model in dict.fromkeys(row.facts["model"] for row in record.select("test_image")):
        rows.append(
            [
                f"{model}: a pass with DoLa over one without, 4 images, one code each",
                *(_ratio(step(model, "DoLa", dtype), step(model, "baseline", dtype)) for dtype in _ON_A_CPU),
            ]
        )
        for images in (1, 4):
            for loop, way in (("plain loop", "DoLa"), ("plain loop", "baseline"), ("transformers", "baseline")):
                theirs = image(model, images, loop, way, "float32")
                ours = (image(model, images, "ours, eager", way, dtype) for dtype in _ON_A_CPU)
                what = f"{model}, {images} at once: images, {way}, {loop} over ours"
                rows.append([what, *(_ratio(theirs, each) for each in ours)])
    columns = [f"time ratios on a {record.device}; theirs in float32", *(f"ours in {dtype}" for dtype in _ON_A_CPU)]
    return markdown(columns, rows)


def on_a_gpu(record: Record | None) -> str:
    """Makes the table of targets in docs/speed.md, and how far they are met on a GPU."""

    def worst(shape: str) -> str:
        rows = record.select("test_head_stage", shape=shape, candidates=4, backend="triton") if record else []
        shares = [row.median / row.floor for row in rows if row.floor and row.facts["images"] <= 16]
        return f"{max(shares):.2f} x" if shares else NOT_MEASURED

    def of(test: str, **facts: object) -> float | None:
        return record.median(test, **facts) if record else None

    def stage(backend: str) -> float | None:
        return of("test_head_stage", shape="7B", images=4, candidates=4, backend=backend)

    def image(model: str, loop: str, way: str) -> float | None:
        window = "auto" if loop.startswith("ours") else 1
        images = {"1B": 4, "7B": 16}[model]
        return of("test_image", model=model, images=images, loop=loop, way=way, window=window)

    def step(way: str) -> float | None:
        return of("test_step", model="7B", images=16, window=1, launch="graph", way=way)

    def share() -> str:
        facts = {"model": "7B", "images": 16, "window": 1, "launch": "graph", "way": "DoLa"}
        rows = record.select("test_step", **facts) if record else []
        return f"{rows[0].floor / rows[0].median:.0%}" if rows and rows[0].floor else NOT_MEASURED

    def memory() -> str:
        rows = record.select("test_image", model="7B", images=16, loop="ours, graph", window=1) if record else []
        size = {row.facts["way"]: row.facts["memory_bytes"] for row in rows}
        return f"{(size['DoLa'] - size['baseline']) / 1e6:.1f} MB" if len(size) == 2 else NOT_MEASURED

    def faster(model: str, loop: str, way: str) -> str:
        """Says how much faster it is than ours with DoLa."""
        return _ratio(image(model, loop, way), image(model, "ours, graph", "DoLa"))

    def stage_faster(backend: str) -> str:
        return _ratio(stage(backend), stage("triton"))

    rows = [
        ["head stage over its floor, 7B, 5 layers, 1 to 16 images (the worst)", "<= 1.25 x", worst("7B")],
        ["the same, 1B", "<= 1.5 x", worst("1B")],
        ["head stage, 7B, 4 images: eager reference over ours", ">= 10 x", stage_faster("reference")],
        ["the same, torch.compile of the batched pass over ours", ">= 1.5 x", stage_faster("torch, compiled")],
        [
            "a pass with DoLa over one without, 7B, 16 images, one code each",
            "<= 1.02",
            _ratio(step("DoLa"), step("baseline")),
        ],
        ["the floor's share of a 7B pass with DoLa, 16 images, one code each", ">= 75%", share()],
        ["images with DoLa, 1B, 4 at once: plain loop over ours", ">= 5 x", faster("1B", "plain loop", "DoLa")],
        ["the same, 7B, 16 at once", ">= 3 x", faster("7B", "plain loop", "DoLa")],
        ["transformers' loop without DoLa over ours with it, 1B", ">= 2 x", faster("1B", "transformers", "baseline")],
        ["memory that DoLa adds, 7B, 16 images", "<= 64 MB", memory()],
    ]
    device = record.device if record else "a GPU"
    return markdown([f"bfloat16 on {device}", "target", "measured"], rows)


def performance(records: list[Record]) -> str:
    """Makes the tables of docs/speed.md: one CPU, one GPU."""
    gpu = next((record for record in records if record.on_gpu), None)
    parts = [on_a_cpu(record) for record in records if not record.on_gpu][:1]
    return "\n".join([*parts, on_a_gpu(gpu)])
