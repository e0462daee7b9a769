"""The notebooks: kept to the contract, compared for real, true with another model too.

pytest runs each of them cell by cell with nbval; here is what nbval does not see.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from run_notebooks import execute

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
IGNORED = "nbval-ignore-output"

each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


@each_lesson
def test_every_cell_was_run_in_order(path: Path) -> None:
    """Execution counts are 1 to n: nbval compares nothing in a cell that was never run."""
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@each_lesson
def test_every_cell_has_an_output(path: Path) -> None:
    """Whatever a learner runs shows something, and gives nbval something to compare."""
    assert [cell.id for cell in code_cells(path) if not cell.outputs] == []


@each_lesson
def test_most_cells_are_compared(path: Path) -> None:
    """At most a quarter is not compared, and none is skipped."""
    cells = code_cells(path)
    tags = [set(cell.metadata.get("tags", [])) for cell in cells]
    assert set().union(*tags) <= {IGNORED}
    assert sum(IGNORED in these for these in tags) <= len(cells) / 4


@each_lesson
def test_cells_are_small(path: Path) -> None:
    """No more than 15 lines of code, none wider than a page."""
    for cell in code_cells(path):
        lines = cell.source.splitlines()
        assert len(lines) <= 15, cell.id
        assert max(map(len, lines)) <= 100, cell.id
    sizes = sorted(len(cell.source.splitlines()) for cell in code_cells(path))
    assert sizes[len(sizes) // 2] <= 8


@each_lesson
def test_nothing_that_breaks_under_nbval(path: Path) -> None:
    """None of the calls whose outputs can't be compared, and no trailing semicolon."""
    for cell in code_cells(path):
        assert not cell.source.rstrip().endswith(";"), cell.id
        assert not re.search(
            r"clear_output|Output\(|interact\(|display_id|asyncio\.run\(|^[%!]|Out\[",
            cell.source,
            re.MULTILINE,
        ), cell.id


@each_lesson
def test_ids_are_stable_and_metadata_is_bare(path: Path) -> None:
    """Ids are words, not random; no times, no machine, no kernel of one's own in the metadata."""
    notebook = read(path)
    assert [
        cell.id for cell in notebook.cells if not re.fullmatch(r"[a-z][a-z0-9-]*", cell.id)
    ] == []
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, cell.id


@each_lesson
def test_no_path_of_a_machine(path: Path) -> None:
    """No source and no output names a folder of whoever saved it."""
    assert (
        re.findall(r"/(?:home|root|tmp|Users|work)/\w+|[A-Z]:\\\\", path.read_text("utf-8")) == []
    )


@each_lesson
def test_figures_have_words(path: Path) -> None:
    """Every picture has alt text, the same words as its plain-text form, and a table after it."""
    cells = code_cells(path)
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert output.metadata["image/png"]["alt"] == output.data["text/plain"]
                assert following is not None
                assert ".table()" in following.source


@each_lesson
def test_a_lesson_has_its_parts(path: Path) -> None:
    """Minutes, what you will be able to do, predictions, summary, new words, folded questions."""
    text = "\n".join(cell.source for cell in read(path).cells)
    for part in (
        "| Minutes |",
        "you will be able to",
        "**Predict:**",
        "## In short",
        "**New words.**",
    ):
        assert part in text
    assert 5 <= text.count("<details>") == text.count("</details>") <= 8


@each_lesson
def test_links_lead_somewhere(path: Path) -> None:
    """Every link to another file of the workbook exists."""
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (path.parent / target).exists(), target


@each_lesson
def test_the_code_compiles_for_every_python(path: Path) -> None:
    """The cells are valid for the oldest Python that is supported."""
    for cell in code_cells(path):
        compile(
            cell.source,
            cell.id,
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST,
            _feature_version=11,
        )


def test_a_changed_output_is_noticed(tmp_path: Path) -> None:
    """The negative control: one stored word is changed in a copy, and the run goes red."""
    notebook = read(LESSONS[0])
    first = next(n for n, cell in enumerate(notebook.cells) if _is_compared(cell))
    notebook.cells = notebook.cells[: first + 1]
    notebook.cells[first].outputs[0].text += "changed"
    copy = tmp_path / "changed.ipynb"
    nbformat.write(notebook, copy)
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-p", "conftest"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(copy)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert run.returncode == 1, run.stdout
    assert "1 failed" in run.stdout


def _is_compared(cell: Any) -> bool:
    return (
        cell.cell_type == "code"
        and IGNORED not in cell.metadata.get("tags", [])
        and cell.outputs[0].output_type == "stream"
    )


@each_lesson
def test_it_runs_to_the_end_with_another_model(path: Path, other_model: Path) -> None:
    """Every assertion is about the service: it holds for a model that answers all otherwise."""
    notebook = read(path)
    os.environ["FOUNDRY_MODEL_DIR"] = str(other_model)
    try:
        execute(notebook, path.parent)
    finally:
        del os.environ["FOUNDRY_MODEL_DIR"]
    outputs = str([cell.get("outputs") for cell in notebook.cells])
    keeps_the_small_one = path.stem == "06_latency"  # its loads and stalls are in milliseconds
    assert ("count-bot:1" in outputs) != keeps_the_small_one
    assert ("lab-tiny:1" in outputs) == keeps_the_small_one
