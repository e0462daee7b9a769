"""The measuring tool works; what it measures is for benchmarks/README.md, not for a test."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import run
from measure import Row, in_turns

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("subject", run.SUBJECTS)
def test_every_subject_runs(subject: str) -> None:
    """Each gives rows with numbers, and its contestants did what they had to."""
    rows = list(run.SUBJECTS[subject](True))
    assert rows
    for row in rows:
        assert math.isfinite(row.ratio)
        assert row.n == 2
        assert run.line(row).count("|") == run.HEADER[0].count("|")


def test_the_command_writes_a_table() -> None:
    """It runs as the page says, and under the table is where it was measured."""
    command = [sys.executable, "benchmarks/run.py", "--quick", "layers"]
    run_ = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(line in run_.stdout for line in run.HEADER)
    assert "CPUs" in run_.stdout
    assert "Load before" in run_.stdout


def test_the_table_takes_the_place_of_the_last_one(tmp_path: Path) -> None:
    """Written twice, the page has the second table, and all that was around it."""
    page = tmp_path / "README.md"
    page.write_text(f"before\n{run.BEGIN}\n{run.END}\nafter\n", encoding="utf-8")
    run.write("first", page)
    run.write("second", page)
    assert page.read_text("utf-8") == f"before\n{run.BEGIN}\n\nsecond\n\n{run.END}\nafter\n"
    assert run.README.read_text("utf-8").count(run.BEGIN) == 1


def test_contestants_take_turns() -> None:
    """In each round everyone has one turn, nobody is always first, and the first round is lost."""
    turns: list[str] = []

    def contestant(name: str) -> Callable[[], float]:
        def take() -> float:
            turns.append(name)
            return float(len(turns))

        return take

    samples = in_turns(3, {name: contestant(name) for name in "abc"})
    assert "".join(turns) == "abc" + "bca" + "cab" + "abc"
    assert samples == {"a": [6, 8, 10], "b": [4, 9, 11], "c": [5, 7, 12]}


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (("≤", 0.5), True),
        (("≤", 0.4), False),
        (("≥", 0.5), True),
        (("≥", 0.6), False),
        (None, None),
    ],
)
def test_a_row_compares_round_by_round(target: tuple[str, float] | None, met: bool | None) -> None:
    """The ratio is the median of ours by theirs; the target is met on the right side of it."""
    samples = {"ours": [1.0, 2.0, 9.0], "theirs": [4.0, 4.0, 3.0]}
    row = Row.of("what", samples, "ours", "theirs", "ms", target)  # type: ignore[arg-type]
    assert (row.ours, row.theirs, row.ratio, row.n) == (2, 4, 0.5, 3)
    assert row.spread == (0.375, 1.75)
    assert row.met is met


def test_a_short_soak_leaves_nothing_and_loses_nothing() -> None:
    """300 calls, every fifth gone wrong: each accounted for, retries in budget, nothing left."""
    program = [sys.executable, "benchmarks/soak.py", "--requests", "300"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every one accounted for, nothing left" in done.stdout
