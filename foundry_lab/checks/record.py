"""What a learner has done: one small file, ``progress.json``, in the learner's folder."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Self

from foundry_lab.checks.sheets import exercises, mine, write_whole

__all__ = ["Record", "progress_text"]

FILE = "progress.json"


@dataclass
class Record:
    """Which exercises are passed, how often each was tried, and which hints were shown."""

    passed: list[str] = field(default_factory=list)
    """Names of exercises, in the order in which they were passed."""

    tried: dict[str, int] = field(default_factory=dict)
    """How often each was checked."""

    hints: dict[str, int] = field(default_factory=dict)
    """How many hints of each were shown."""

    quizzes: dict[str, list[int]] = field(default_factory=dict)
    """The questions of each lesson that were answered right."""

    @classmethod
    def read(cls) -> Self:
        """Read the file; a missing one is an empty record, a damaged one is put aside."""
        path = mine() / FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()
        except OSError as error:
            print(f"Your progress can't be read: {error}. `python start.py doctor` tells more.")
            return cls()
        except (ValueError, TypeError):
            aside = path.with_suffix(".damaged.json")
            path.replace(aside)
            print(f"Your progress could not be read: it is kept in {aside}, and begins anew.")
            return cls()

    @classmethod
    def change(cls, how: Callable[[Self], None]) -> Self:
        """Read the file, change what it says, and write it whole; if that fails, say so."""
        record = cls.read()
        how(record)
        try:
            mine().mkdir(parents=True, exist_ok=True)
            write_whole(mine() / FILE, json.dumps(asdict(record), indent=1) + "\n")
        except OSError as error:
            print(f"Your progress is not saved: {error}. `python start.py doctor` tells more.")
        return record


def progress_text() -> str:
    """A line for each lesson, and what is next."""
    record, everything = Record.read(), exercises()
    lines = []
    for sheet, group in groupby(everything, key=lambda one: one.sheet):
        these = list(group)
        done = "".join("●" if one.name in record.passed else "○" for one in these)
        left = sum(one.minutes for one in these if one.name not in record.passed)
        lines.append(f"{sheet.removesuffix('.ipynb'):24}{done:8}{left:4} minutes left")
    ahead = [one for one in everything if one.name not in record.passed]
    left = sum(one.minutes for one in ahead)
    total = f"{len(everything) - len(ahead)} of {len(everything)} done, {left} minutes left"
    following = [f"next: {ahead[0].name}, {ahead[0].title}"] if ahead else []
    return "\n".join([*lines, total, *following])
