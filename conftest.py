"""What every test stands on: the bundled model, no network, notebooks compared strictly.

And one real service for the tests that only talk to it, a fresh one for those that do it harm.
"""

import atexit
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("UNDER_HTTPX2"):  # the unit tests under httpx's successor
    import httpx2

    httpx2.alias_httpx()

from foundry_lab import FoundryAPIClient, Service
from foundry_lab.settings import BUNDLED_MODEL_DIR, LOOPBACK

ROOT = Path(__file__).parent
NOBODYS_EXERCISES = Path(tempfile.mkdtemp(prefix="foundry-lab-exercises-"))


def pytest_configure(config: pytest.Config) -> None:
    config.option.nbval = True
    config.option.nbval_current_env = True
    config.option.nbval_cell_timeout = 60.0
    config.option.nbval_sanitize_with = str(ROOT / "tests" / "sanitize.cfg")
    _set_environment()
    # A run in the background ignores Ctrl-C, and so would the programs it starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.addaudithook(_refuse_network)


def _set_environment() -> None:
    """Children inherit it: notebook kernels, and the service that a kernel starts."""
    for name in [name for name in os.environ if name.startswith("FOUNDRY_")]:
        del os.environ[name]
    os.environ["FOUNDRY_MODEL"] = "lab-tiny"
    atexit.register(shutil.rmtree, NOBODYS_EXERCISES, ignore_errors=True)
    # What respects a proxy meets a closed door at once, instead of the network.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        os.environ[name] = os.environ[name.lower()] = "http://127.0.0.1:9"
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(LOOPBACK)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give each file, and so each notebook, a learner who has done nothing yet."""
    folder = NOBODYS_EXERCISES / f"{item.path.parent.name}-{item.path.stem}"
    os.environ["FOUNDRY_EXERCISES"] = str(folder)


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Fail a test that looks up or connects to anything but this machine."""
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if host not in (*LOOPBACK, None, "", b"127.0.0.1", b"localhost"):
        raise PermissionError(f"a test reached for the network: {event} {host!r}")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """Serve lab-tiny for the whole session."""
    with Service() as running:
        yield running


@pytest.fixture
def own_service() -> Iterator[Service]:
    """Serve lab-tiny for one test, which may kill it."""
    with Service() as running:
        yield running


@pytest.fixture
async def client(service: Service) -> AsyncIterator[FoundryAPIClient]:
    async with contextlib.aclosing(FoundryAPIClient(service)) as open_client:
        yield open_client


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make another model: half the context, and whatever it is asked, it counts."""
    folder = tmp_path_factory.mktemp("models") / "count-bot"
    shutil.copytree(BUNDLED_MODEL_DIR, folder)
    config = folder / "genai_config.json"
    config.write_text(config.read_text("utf-8").replace("4096", "2048"), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}<|im_start|>system\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}<|im_start|>user\nCount from 1 to 300.<|im_end|>\n<|im_start|>assistant"
        "{{ '\\n' }}",  # a template's last line end is not a part of the prompt
        encoding="utf-8",
    )
    return folder
