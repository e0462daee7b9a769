"""The source: formatted, linted, typed, and without a trace of where it was made."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]],
    ids=["ruff check", "ruff format", "mypy"],
)
def test_checks_are_clean(command: list[str]) -> None:
    """ruff (notebooks too) and mypy strict have nothing to say."""
    run = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_requirements_are_exact() -> None:
    """Every requirement has one version: the workbook installs the same everywhere."""
    for file in (ROOT / "requirements.txt", ROOT / "tools" / "requirements.txt"):
        for line in file.read_text("utf-8").splitlines():
            wanted = line.partition("#")[0].strip()
            assert re.fullmatch(r"|-e \.|[\w.-]+==[\w.+]+", wanted), line
