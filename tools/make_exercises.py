"""Make the exercise sheets from the masters that hold the solutions.

    python tools/make_exercises.py          write exercises/*.ipynb from exercises/solutions/*.ipynb
    python tools/make_exercises.py check    say which sheets are not what their master gives

In a master, code of a learner's own stands between marks, and a sheet gets a stub in its place::

    # BEGIN SOLUTION
    return rng.uniform(0, ceiling)
    # BEGIN STUB
    # return ceiling
    # END SOLUTION

Without BEGIN STUB the stub is ``raise NotImplementedError``, at the same depth. Of a line that ends
with ``# SOLUTION`` everything after the first ``=`` becomes ``...``. Cells whose id ends with
``-hints``, or begins with ``sol-``, are in the master only.
"""

import re
import sys
from pathlib import Path
from typing import Any

import nbformat

from foundry_lab.checks.sheets import BLOCK, LINE

EXERCISES = Path(__file__).parent.parent / "exercises"


def main() -> int:
    """Write the sheets, or compare them."""
    only_check, stale = sys.argv[1:] == ["check"], []
    for master in sorted((EXERCISES / "solutions").glob("[0-9]*.ipynb")):
        sheet, text = EXERCISES / master.name, sheet_text(master)
        if sheet.exists() and sheet.read_text(encoding="utf-8") == text:
            continue
        stale.append(sheet.name)
        if not only_check:
            sheet.write_text(text, encoding="utf-8", newline="\n")
    print("\n".join(stale) or "All sheets are in step with their masters.")
    return int(only_check and bool(stale))


def sheet_text(master: Path) -> str:
    """The sheet of a master, as the text of its file."""
    notebook: Any = nbformat.read(master, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not _of_master_only(cell.id)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source, cell.outputs, cell.execution_count = stub(cell.source), [], None
        cell.source = cell.source.replace("](../../", "](../")  # the sheet lies one folder higher
    text: str = nbformat.writes(notebook)
    return text + "\n"


def _of_master_only(cell_id: str) -> bool:
    return cell_id.endswith("-hints") or cell_id.startswith("sol-")


def stub(source: str) -> str:
    """Code without its solutions."""
    return LINE.sub(r"\g<target> ...", BLOCK.sub(_stub_of, source))


def _stub_of(block: re.Match[str]) -> str:
    depth, given = block["depth"], block["stub"]
    if given is None:
        return f"{depth}raise NotImplementedError"
    return "\n".join(re.sub(r"^( *)# ?", r"\1", line).rstrip() for line in given.splitlines())


if __name__ == "__main__":
    sys.exit(main())
