"""Execute the notebooks and save them, or show that a fresh execution equals what is stored.

    python tools/run_notebooks.py save  [NOTEBOOK …]   run every cell, store the outputs
    python tools/run_notebooks.py check [NOTEBOOK …]   run every cell, compare with what is stored

Without names: every lesson, and every solution of the exercises. Run ``save`` after the bundled
model has changed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["save", "check"])
    parser.add_argument("notebooks", nargs="*", type=Path)
    arguments = parser.parse_args()
    named = [notebook.resolve() for notebook in arguments.notebooks]
    notebooks = named or [
        path
        for folder in ("notebooks", "exercises/solutions")
        for path in sorted((ROOT / folder).glob("[0-9]*.ipynb"))
    ]
    for name in [name for name in os.environ if name.startswith("FOUNDRY_")]:
        del os.environ[name]
    os.environ["FOUNDRY_MODEL"] = "lab-tiny"  # the stored text is the bundled model's
    if arguments.command == "check":
        return subprocess.call([sys.executable, "-m", "pytest", *map(str, notebooks)], cwd=ROOT)
    with tempfile.TemporaryDirectory() as nobodys_exercises:
        os.environ["FOUNDRY_EXERCISES"] = nobodys_exercises
        return max(save(notebook) for notebook in notebooks)


def save(path: Path) -> int:
    """Run every cell and store the outputs; a cell in error leaves the file as it was."""
    notebook = nbformat.read(path, as_version=4)
    try:
        execute(notebook, path.parent)
    except CellExecutionError as error:
        print(f"{path.name}: not saved. {error.ename}: {error.evalue}", file=sys.stderr)
        return 1
    nbformat.write(notebook, path)
    print(f"{path.name}: saved")
    return 0


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run every cell in a new kernel and keep nothing but the outputs.

    Raises:
        CellExecutionError: A cell failed.
    """
    NotebookClient(
        notebook,
        timeout=120,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": folder}},
    ).execute()
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
    )


if __name__ == "__main__":
    sys.exit(main())
