"""Measure the package beside what else does the same, and print the table.

    python benchmarks/run.py                    # everything, some minutes
    python benchmarks/run.py decoding imports   # some subjects
    python benchmarks/run.py --write            # and put the table into benchmarks/README.md
    python benchmarks/run.py --quick            # does it run? Two rounds prove nothing

Each subject is a module with a function ``rows(quick)``; `SUBJECTS` names them.
"""

import argparse
import os
import platform
import re
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import batching
import decoding
import holding
import importing
import layering
import loading
import monitoring
import proxying
import streaming
from measure import Row

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- measured: written by benchmarks/run.py -->", "<!-- end -->"

SUBJECTS: dict[str, Callable[[bool], Iterable[Row]]] = {
    "decoding": decoding.rows,
    "streaming": streaming.rows,
    "layers": layering.rows,
    "proxy": proxying.rows,
    "imports": importing.rows,
    "batch": batching.rows,
    "memory": holding.rows,
    "load": loading.rows,
    "health": monitoring.rows,
}

OTHERS = ("httpx", "httpx-sse", "httpx-retries", "circuitbreaker", "openai", "pydantic")
HEADER = (
    "| What | foundry_lab | Compared with | Ratio (middle half) | Target | n |",
    "|---|--:|---|--:|---|--:|",
)


def measured(names: Iterable[str], quick: bool) -> str:
    """Run these subjects; return the table, and under it where and when it was measured."""
    began = load()
    lines = list(HEADER)
    for name in names:
        for row in SUBJECTS[name](quick):
            lines.append(line(row))
            print(f"{name}: {lines[-1]}", flush=True)
    return "\n".join([*lines, "", f"{machine()} Load before {began}, after {load()}."])


def line(row: Row) -> str:
    """Format a row."""
    low, high = row.spread
    target = ""
    if row.target is not None:
        sign, bound = row.target
        target = f"{sign} {bound:g} {'✓' if row.met else '✗'}"
    cells = (
        row.what,
        f"{number(row.ours)} {row.unit}",
        f"{row.other}: {number(row.theirs)} {row.unit}",
        f"**{row.ratio:.2f}** ({low:.2f} to {high:.2f})",
        target,
        str(row.n),
    )
    return f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    """Write three digits, and all of them before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> str:
    """Say when, on what kind of machine and with which versions."""
    system = f"{platform.system()} on {_processor()}, {os.cpu_count()} CPUs"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    packages = ", ".join(f"{name} {version(name)}" for name in OTHERS)
    return f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC. {system}. {python}, {packages}."


def load() -> str:
    """Say how many programs wanted a CPU in the last minute, where the system knows."""
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpus.read_text("utf-8")) if cpus.exists() else None
    return model[1] if model else platform.processor() or platform.machine()


def write(table: str, page: Path = README) -> None:
    """Put the table into the page, between its markers."""
    before, rest = page.read_text("utf-8").split(BEGIN)
    after = rest.split(END, 1)[1]
    page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Read the options, measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--quick", action="store_true", help="two rounds: only to see it run")
    options = parser.parse_args()
    if unknown := set(options.subjects) - set(SUBJECTS):
        parser.error(f"no subject {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    table = measured(options.subjects or SUBJECTS, options.quick)
    print(f"\n{table}")
    if options.write:
        write(table)


if __name__ == "__main__":
    main()
