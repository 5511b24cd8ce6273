"""`python -m bench.hub kernel|text OUT [--owner NAME]`: writes a folder to push to the Hugging Face Hub."""

import argparse
from pathlib import Path

from bench.hub.kernel import write_kernel
from bench.hub.text import write_text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.hub", description=__doc__)
    parser.add_argument("what", choices=("kernel", "text"))
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("--owner", default="janus-dola", help="the account on the Hub that it is for")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"out must be a new folder, got {options.out}")
    {"kernel": write_kernel, "text": write_text}[options.what](options.out, options.owner)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
