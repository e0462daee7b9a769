"""Progress: what is done, what is next, and how many minutes are left."""

from html import escape
from typing import TYPE_CHECKING

from foundry_lab.checks.record import progress_text

if TYPE_CHECKING:
    import ipywidgets

__all__ = ["progress"]


def progress() -> "ipywidgets.VBox":
    """Print the progress, and give a panel that shows it anew whenever its button is clicked."""
    import ipywidgets  # the command line shows progress without it

    text = ipywidgets.HTML()
    button = ipywidgets.Button(description="Update")

    def update(_: object) -> None:
        text.value = f"<pre>{escape(progress_text())}</pre>"

    button.on_click(update)
    print(progress_text())
    return ipywidgets.VBox([button, text])
