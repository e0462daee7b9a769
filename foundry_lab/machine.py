"""The first two looks at a machine, with the standard library alone: they work where nothing does.

So this module imports no other one of the package, most of which need what may be missing.
"""

import platform
import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import TextWrapper
from typing import Literal

__all__ = ["Finding", "import_failed", "packages", "python"]

REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
SET_UP = (
    "Run `python start.py` once, with a network; in another editor, choose the Python of .venv."
)
MARKS = {"ok": "ok", "warn": "warn", "fail": "NOT"}


@dataclass(frozen=True)
class Finding:
    """One thing that was examined."""

    what: str
    status: Literal["ok", "warn", "fail"]
    """``warn``: the lessons run, and something is not as it could be. ``fail``: they don't."""
    detail: str
    fix: str = ""
    """What to do when it is not ok."""

    @property
    def ok(self) -> bool:
        """Whether the lessons run in spite of it."""
        return self.status != "fail"

    def __str__(self) -> str:
        line = _filled(f"{MARKS[self.status]:<4} {self.what:<10} ", self.detail)
        return line if self.status == "ok" else f"{line}\n{_filled('     → ', self.fix)}"


def python() -> Finding:
    """Look at the Python that runs this."""
    good = (3, 11) <= sys.version_info < (3, 15)
    return Finding(
        "Python",
        "ok" if good else "fail",
        f"{platform.python_version()} in {Path(sys.prefix).name}, "
        f"on {platform.system()} {platform.machine()}",
        "Use Python 3.11 to 3.14: `python start.py` says how.",
    )


def packages(requirements: Path = REQUIREMENTS) -> Finding:
    """Compare what is installed with what the workbook runs on, version by version.

    Args:
        requirements: The file that names them.
    """
    text = requirements.read_text("utf-8") if requirements.exists() else ""
    wanted = dict(re.findall(r"^([\w.-]+)==([\w.+]+)", text, re.MULTILINE))
    found = {name: _version(name) for name in wanted}
    if missing := [name for name, has in found.items() if has is None]:
        return Finding("packages", "fail", f"missing: {', '.join(missing)}", SET_UP)
    others = [
        f"{name} {has}, not {wanted[name]}" for name, has in found.items() if has != wanted[name]
    ]
    if others:
        detail = f"other versions than in requirements.txt: {'; '.join(others)}"
        return Finding("packages", "warn", detail, SET_UP)
    shown = ", ".join(f"{name} {_version(name)}" for name in ("foundry-local-sdk", "httpx"))
    return Finding("packages", "ok", f"{len(wanted)} as in requirements.txt; {shown}")


def import_failed(error: ImportError) -> Finding:
    """Say what to do when a package that everything needs can't be imported."""
    return Finding("packages", "fail", f"{error} ({packages().detail})", SET_UP)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _filled(begin: str, text: str) -> str:
    """Break a sentence into lines, but nothing that is to be copied."""
    wrapper = TextWrapper(
        96,
        initial_indent=begin,
        subsequent_indent=" " * len(begin),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.fill(text)
