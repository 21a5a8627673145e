"""Run the benchmarks that docs/performance.md quotes, and write their output into it.

The page has its figures between a line that says which command made them and an end::

    <!-- measured: loader.py --threads 1 2 -->
    (a block of text, replaced)
    <!-- end -->

What stands around them is written by hand and stays. ``{data}`` in a command is the folder given by ``--data``, and
commands with it are skipped, and their figures kept, where there is none.

    python benchmarks/report.py --data path/to/data          # all
    python benchmarks/report.py --data path/to/data --only store.py
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from pair import machine

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
BLOCK = re.compile(r"<!-- measured: (?P<command>.*?) -->\n.*?<!-- end -->", re.DOTALL)
HEAD = re.compile(r"<!-- machine -->\n.*?<!-- end -->", re.DOTALL)


def measured(command: str, data: Path | None) -> str | None:
    """A benchmark's output; None where it needs data that are not there."""
    if "{data}" in command and data is None:
        return None
    script, *words = shlex.split(command.replace("{data}", str(data)))
    run = subprocess.run([sys.executable, str(HERE / script), *words], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{command} failed:\n{run.stderr}")
    return run.stdout.rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder with cifar100 and imagenet-samples")
    parser.add_argument("--only", default="", help="scripts, with commas between them")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    only = arguments.only.split(",") if arguments.only else []
    page, began = arguments.page.read_text(encoding="utf-8"), time.perf_counter()
    for block in list(BLOCK.finditer(page)):
        command = block["command"]
        if only and command.split()[0] not in only:
            continue
        since = time.perf_counter()
        output = measured(command, arguments.data)
        if output is None:
            print(f"{command}: left as it was, for there is no --data")
            continue
        print(f"$ {command}\n{output}\n({time.perf_counter() - since:.0f} s)\n", flush=True)
        page = page.replace(block[0], f"<!-- measured: {command} -->\n```text\n{output}\n```\n<!-- end -->")
        # Written after each, so that what is measured is kept whatever happens to the next.
        arguments.page.write_text(page, encoding="utf-8")
    page = HEAD.sub(f"<!-- machine -->\n{machine()}.\n<!-- end -->", page)
    arguments.page.write_text(page, encoding="utf-8")
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
