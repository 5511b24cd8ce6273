"""Counts what makes the code easy or hard to read; `python -m tests.house` prints it, `test_house.py` holds the limits.

A docstring of a function begins with a verb if its first word is one of `VERBS`; add a new verb there.
"""

import ast
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "janus_dola"
# From the lowest to the highest: what stands in a line imports from lines above it only.
ROOMS = (
    "kernels",
    "arguments",
    "contrasts",
    "settings",
    "mini",
    "models",
    "images",
    "engine",
    "text",
    "pipeline",
    "training",
    "compute",
    "dola_runtime",
    "generation_inference",
    "batch",
    "evaluate",
    "serve",
    "cli",
    "run_batch_prompts",
    "__main__",
)
# Names that say nothing of what they hold.
EMPTY_NAMES = frozenset({"found", "told", "wanted", "asked"})
_VERBS = """
    Accepts Adapts Adds Admits Advances Allocates Answer Answers Appends Applies Asks Attends Begins Bounds Builds
    Calls Cancels Captures Carries Casts Changes Checks Chooses Clamps Closes Collects Combines Compares Compiles Computes
    Concatenates Connects Contrasts Converts Copies Corrects Counts Creates Cuts Decides Declares Decodes Deletes
    Describes Discards Divides Downloads Draw Draws Drops Embeds Encodes Ends Enlarges Escapes Estimates Evolves
    Expands Fails Feeds Fetches Fills Finds Finishes Fits Forgets Formats Frames Gathers Generates Gives Groups Guesses
    Guides
    Halves Hands Has Holds Ignores Imports Interleaves Is Joins Keeps Launches Lay Lays Leaves Lets Limits Lists Loads
    Locks Looks Makes Maps Marks Masks Measures Merges Moves Multiplies Mutes Names Normalises Notes Numbers Opens
    Orders Overwrites Packs Pads Parses Passes Pastes Picks Places Plans Prepares Prints Profile Projects Pushes Puts
    Quantizes Queues Raises Ranks Reads Record Records Refuses Registers Releases Removes Renders Repeats Replaces
    Replays Reports Requests Resolves Restores Resumes Returns Rewrites Rotates Rounds Runs Samples Saves Says Scales
    Score Scores Selects Sends Serve Serves Sets Shares Shortens Show Shows Shuts Signals Skips Softens Sorts Splits
    Stacks Starts Stops Stores Submits Sums Swaps Sweeps Takes Tells Tests Tokenizes Traces Train Trains Tries Truncates
    Turns Unpacks Updates Uploads Uses Validates Waits Walks Warns Widens Wraps Writes Yields
"""
VERBS = frozenset(_VERBS.split())


@dataclass(frozen=True)
class House:
    """Counts of a package."""

    lines: int
    docstrings: int  # number of functions that have one
    without_verb: list[str]  # functions' docstrings, "file:line first words"
    of_share: float  # share of "of" among the words of all docstrings
    empty_names: list[str]  # "file:line name"
    long_modules: list[str]  # more than 400 lines
    top_level: list[str]  # files
    upward: list[str]  # imports that point up
    cycles: list[list[str]]  # modules in a circle
    twins: list[str]  # modules or classes that share a name


def empty_names(folder: Path) -> list[str]:
    """Lists "file:line name" for each variable or parameter below a folder whose name is one of `EMPTY_NAMES`."""
    names = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assigned = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None
            name = node.arg if isinstance(node, ast.arg) else assigned
            if name in EMPTY_NAMES:
                names.append(f"{path.relative_to(folder.parent)}:{node.lineno} {name}")
    return names


def measure(package: Path = PACKAGE) -> House:
    """Counts everything in a package."""
    files = sorted(package.rglob("*.py"))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    words: Counter[str] = Counter()
    docstrings, without_verb = 0, []
    for path, tree in trees.items():
        place = path.relative_to(package.parent)
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                continue
            text = ast.get_docstring(node)
            if text is None:
                continue
            words.update(word.lower() for word in re.findall(r"[A-Za-z']+", text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstrings += 1
                if text.split()[0].rstrip(".,:") not in VERBS:
                    without_verb.append(f"{place}:{node.lineno} {text[:60].splitlines()[0]}")
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    imports = {_name(path, package): _imports(path, tree, package) for path, tree in trees.items()}
    return House(
        lines=sum(lengths.values()),
        docstrings=docstrings,
        without_verb=without_verb,
        of_share=words["of"] / words.total(),
        empty_names=empty_names(package),
        long_modules=[f"{path.relative_to(package.parent)} {n}" for path, n in lengths.items() if n > 400],
        top_level=sorted(path.name for path in package.glob("*.py")),
        upward=_upward(imports),
        cycles=_cycles(imports),
        twins=_twins(trees),
    )


def _twins(trees: dict[Path, ast.Module]) -> list[str]:
    """Lists names that two modules, or two classes, have; cli/X.py may bear the name of what its command runs."""
    modules = Counter(path.stem for path in trees if path.stem != "__init__" and path.parent.name != "cli")
    classes = Counter(node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return [f"{name} ({number} times)" for name, number in (modules + classes).items() if number > 1]


def _name(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"


def _imports(path: Path, tree: ast.Module, package: Path) -> set[str]:
    """Returns the modules of the package that a module imports, wherever in it."""
    known = {_name(other, package) for other in package.rglob("*.py")} | {
        ".".join(folder.relative_to(package).parts) for folder in package.rglob("*") if folder.is_dir()
    }
    modules = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.startswith("janus_dola.") and name.removeprefix("janus_dola.") in known:
                modules.add(name.removeprefix("janus_dola."))
    own = _name(path, package)
    # `from package.room import module` needs the room only for its `__init__`.
    return {
        module for module in modules if module != own and not any(other.startswith(f"{module}.") for other in modules)
    }


def _upward(imports: dict[str, set[str]]) -> list[str]:
    rank = {room: number for number, room in enumerate(ROOMS)}
    return [
        f"{module} -> {other}"
        for module, others in imports.items()
        if module != "__init__"
        for other in sorted(others)
        if rank[module.split(".")[0]] < rank[other.split(".")[0]]
    ]


def _cycles(imports: dict[str, set[str]]) -> list[list[str]]:
    cycles, done = [], set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            cycles.append([*path[path.index(module) :], module])
        elif module not in done:
            for other in sorted(imports.get(module, ())):
                visit(other, [*path, module])
            done.add(module)

    for module in imports:
        if module != "__init__":
            visit(module, [])
    return cycles


if __name__ == "__main__":
    house = measure()
    print(f"{house.lines} lines; top level: {', '.join(house.top_level)}")
    print(f"{len(house.without_verb)} of {house.docstrings} docstrings of functions do not begin with a verb")
    print(f"'of' is {house.of_share:.2%} of the words of docstrings")
    for title in ("without_verb", "empty_names", "long_modules", "upward", "cycles", "twins"):
        items = getattr(house, title)
        print(f"{title}: {len(items)}", *items, sep="\n  ")
    for folder in ("bench", "tests"):
        print(f"empty names in {folder}: {len(empty_names(ROOT / folder))}")
