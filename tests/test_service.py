"""The service: it comes up, it leaves nothing behind, and every wrong start says why."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from essay import ESSAY
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from foundry_lab import Service, Settings, child
from foundry_lab import service as service_module
from foundry_lab.errors import (
    InvalidModelFolder,
    PortInUse,
    ServiceError,
    ServiceStartFailed,
    ServiceUnreachable,
)
from foundry_lab.service import alias_of, start_service
from foundry_lab.settings import BUNDLED_MODEL_DIR

# A program that starts a service, says where it is, and then only waits.
OWNER = """
from foundry_lab import start_service
service = start_service()
print(service.pid, service.port, flush=True)
input()
"""


def home_of(pid: int) -> Path:
    """Find a service's private folder: its log is open in there."""
    (log,) = {file.path for file in psutil.Process(pid).open_files() if "service.log" in file.path}
    return Path(log).parent


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Traces:
    """What a running service has on this machine: a process, a port, a folder."""

    def __init__(self, pid: int, port: int) -> None:
        self.process, self.port, self.home = psutil.Process(pid), port, home_of(pid)
        assert is_open(port)
        assert (self.home / "service.log").read_text()

    def assert_gone(self) -> None:
        """Wait for the process's end, which must come, then look for the rest."""
        psutil.wait_procs([self.process], timeout=10)
        assert not self.process.is_running()
        assert not is_open(self.port)
        assert not self.home.exists()


def traces(service: Service) -> Traces:
    assert service.pid is not None
    return Traces(service.pid, service.port)


def start_owner() -> tuple[subprocess.Popen[str], Traces]:
    """Start another program that owns a service."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pid, port = owner.stdout.readline().split()
    return owner, Traces(int(pid), int(port))


def end(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.communicate()


def test_it_serves_the_bundled_model_on_loopback_only(service: Service) -> None:
    """The model is loaded, and nothing of the process listens beyond this machine."""
    assert httpx.get(f"{service.url}/models/loaded").json() == [service.model_id] == ["lab-tiny:1"]
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(service.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_stop_leaves_nothing() -> None:
    """After stop no process, port or file is left; stopping twice is fine."""
    running = Service().start()
    left = traces(running)
    running.stop()
    running.stop()
    left.assert_gone()
    assert not running.alive


def test_stop_does_not_wait_for_a_generation() -> None:
    """A service that is busy with a long answer ends all the same."""
    with Service() as running:
        left = traces(running)
        body = {"messages": [{"role": "user", "content": "Hello"}], **ESSAY}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{running.url}/v1/chat/completions",
                json={**body, "model": running.model_id},
                timeout=0.05,
            )
    left.assert_gone()


def test_kill_leaves_nothing_and_restart_takes_the_same_port(own_service: Service) -> None:
    """Killed like kill -9, the service is gone; restarted, it is where clients look for it."""
    url, left = own_service.url, traces(own_service)
    own_service.kill()
    left.assert_gone()
    assert not own_service.alive
    own_service.restart()
    assert own_service.url == url
    assert httpx.get(f"{url}/models/loaded").json() == ["lab-tiny:1"]


def test_it_ends_with_a_parent_that_ends() -> None:
    """A program that returns without stopping its service leaves nothing."""
    owner, left = start_owner()
    owner.communicate("\n")
    left.assert_gone()


def test_it_ends_with_a_parent_that_is_killed() -> None:
    """Kill -9 of the owner, as a kernel restart may do it, leaves nothing either."""
    owner, left = start_owner()
    end(owner)
    left.assert_gone()


def test_what_two_kills_leave_is_removed_at_the_next_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Owner and service killed together can't clean up; the next service does."""
    for name in ("TMPDIR", "TEMP", "TMP"):  # a folder where no other test starts a service
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    owner, left = start_owner()
    left.process.suspend()  # so that it can't clean up when its parent dies
    end(owner)
    left.process.kill()
    assert left.home.exists()
    with Service():
        left.assert_gone()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups of this kind")
def test_an_interrupt_meant_for_the_notebook_spares_the_service() -> None:
    """Ctrl-C and "Interrupt kernel" signal the whole group; the service is in its own."""
    owner, left = start_owner()
    assert os.getpgid(left.process.pid) != os.getpgid(owner.pid)
    assert is_open(left.port)
    end(owner)
    left.assert_gone()


def test_a_kernel_restart_ends_the_old_service_and_starts_a_new_one() -> None:
    """Killed and started anew, the notebook has one service, and the old one is gone."""
    manager, kernel = start_new_kernel()
    try:
        before = Traces(*_service_in(kernel))
        manager.restart_kernel(now=True)
        kernel.wait_for_ready(timeout=60)
        before.assert_gone()
        after = Traces(*_service_in(kernel))
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel()
    after.assert_gone()


def _service_in(kernel: BlockingKernelClient) -> tuple[int, int]:
    """Start a service in a notebook's kernel; return its process id and port."""
    said: list[str] = []
    kernel.execute_interactive(
        "import foundry_lab as lab; s = lab.start_service(); print(s.pid, s.port)",
        output_hook=lambda message: said.append(message["content"].get("text", "")),
        timeout=60,
    )
    pid, port = "".join(said).split()
    return int(pid), int(port)


def test_start_service_hands_back_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call is the same service; a killed one is replaced, on the same port."""
    monkeypatch.setattr(service_module, "_shared", None)
    with start_service() as first:
        assert start_service() is first
        first.kill()
        with start_service() as second:
            assert second is not first
            assert second.url == first.url


def test_a_changed_setting_starts_another_service(
    monkeypatch: pytest.MonkeyPatch, other_model: Path
) -> None:
    """After FOUNDRY_MODEL_DIR has changed, the next call serves that folder."""
    monkeypatch.setattr(service_module, "_shared", None)
    with start_service() as first:
        monkeypatch.setenv("FOUNDRY_MODEL_DIR", str(other_model))
        with start_service() as second:
            assert second.model_id == "count-bot:1"
            assert not first.alive


def test_without_a_choice_the_bundled_model_answers_and_a_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """phi-4-mini is the default; where it is not on the machine, lab-tiny is used."""
    monkeypatch.setattr(service_module, "_said", set())
    with Service(Settings(), cache_dir=tmp_path) as running:
        assert running.model_id == "lab-tiny:1"
    assert capsys.readouterr().out == "phi-4-mini is not on this machine: lab-tiny answers.\n"


def test_a_port_in_use_is_named(service: Service) -> None:
    """A taken port is its own error and leaves no half-started service."""
    second = Service(port=service.port)
    with pytest.raises(PortInUse, match=str(service.port)):
        second.start()
    assert not second.alive


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, exists: bool) -> None:
    """A folder without genai_config.json, or none at all, is refused before anything starts."""
    folder = tmp_path if exists else tmp_path / "missing"
    with pytest.raises(InvalidModelFolder, match=r"genai_config\.json|not a folder"):
        Service(Settings(model_dir=folder)).start()


def test_a_broken_model_says_so(tmp_path: Path) -> None:
    """A folder that only looks like a model gives a clear error with the runtime's own words."""
    (tmp_path / "genai_config.json").write_text("{}")
    with pytest.raises(ServiceStartFailed, match="does not load"):
        Service(Settings(model_dir=tmp_path)).start()


def test_a_child_that_dies_gives_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the child can't even run, the error carries the end of its log."""
    monkeypatch.setenv("PYTHONHOME", "no-such-folder")
    with pytest.raises(ServiceStartFailed, match=r"last words:\s+.*Python"):
        Service().start()


def test_a_child_that_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that hangs does not hang the notebook for ever."""
    monkeypatch.setattr(child, "SILENCE_LIMIT", 0.001)
    with pytest.raises(ServiceStartFailed, match="ended before it was ready"):
        Service().start()


def test_a_name_the_runtime_refuses_is_mended(tmp_path: Path) -> None:
    """A folder may have any name; the model's is made of what the runtime allows."""
    for folder, name in (("..modèle 1", "mod-le-1:1"), ("\N{GRINNING FACE}", "model:1")):
        shutil.copytree(BUNDLED_MODEL_DIR, tmp_path / folder)
        with Service(Settings(model_dir=tmp_path / folder)) as running:
            assert running.model_id == name


def test_telemetry_is_off_and_the_log_level_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime confirms that telemetry is disabled; at ERROR it logs nothing of that kind."""
    monkeypatch.delenv("CI", raising=False)  # where it is set the runtime is silent by itself
    with Service(Settings(model="lab-tiny")) as running:
        assert re.search(r"Telemetry\] (Disabled via config|CI environment detected)", running.log)
    with Service(Settings(model="lab-tiny", log_level="ERROR")) as running:
        assert running.log == ""


def test_many_threads_get_one_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """start_service called at the same time starts once."""
    monkeypatch.setattr(service_module, "_shared", None)
    with ThreadPoolExecutor(5) as pool:
        services = set(pool.map(lambda _: start_service(), range(5)))
    (only,) = services
    only.stop()


def test_a_port_taken_meanwhile_does_not_lock_the_notebook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a kill start_service wants its old port back; if that is taken, any other will do."""
    monkeypatch.setattr(service_module, "_shared", None)
    first = start_service()
    first.kill()
    with socket.create_server(("127.0.0.1", first.port)), start_service() as second:
        assert second.port != first.port


def test_a_strangers_folder_stops_no_start() -> None:
    """Names that only look like ours are left alone."""
    odd = Path(tempfile.gettempdir()) / f"foundry-lab-{'9' * 30}-x"
    odd.mkdir()
    try:
        with Service() as running:
            assert running.alive
    finally:
        odd.rmdir()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_does_not_end_the_service() -> None:
    """A child of multiprocessing that exits leaves its parent's service alone."""
    program = (
        "import os; from foundry_lab import start_service; s = start_service(); pid = os.fork()\n"
        "if pid: os.waitpid(pid, 0); print(s.alive, bool(s.log))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "True True\n"


@pytest.mark.parametrize("model", [None, "lab-tiny", "lab-tiny:1"])
def test_attaching_uses_what_runs_and_leaves_it_alone(service: Service, model: str | None) -> None:
    """With an endpoint nothing is started, and stop, kill and restart do not touch it."""
    with Service(Settings(endpoint=service.url, model=model)) as attached:
        assert (attached.model_id, attached.pid) == (service.model_id, None)
        with pytest.raises(ServiceError, match="not started here"):
            attached.kill()
        with pytest.raises(ServiceError, match="not started here"):
            attached.restart()
    assert service.alive


def test_attaching_finds_models_of_ones_own_from_the_root(service: Service) -> None:
    """A URL without /catalogs/local is enough where the models are there."""
    root = service.url.removesuffix("/catalogs/local")
    with Service(Settings(endpoint=root)) as attached:
        assert (attached.url, attached.model_id) == (service.url, service.model_id)


def test_attaching_to_nobody_says_so() -> None:
    """A refused connection and a page that is no Foundry Local are both named."""
    with pytest.raises(ServiceUnreachable, match="No Foundry Local service answers"):
        Service(Settings(endpoint="http://127.0.0.1:9")).start()


def test_attaching_to_another_path_of_the_service_says_so(service: Service) -> None:
    """An endpoint that answers 404 is not taken for a service."""
    with pytest.raises(ServiceUnreachable, match="404"):
        Service(Settings(endpoint=f"{service.url}/nothing")).start()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(401, text="Bearer s3cret?"), "status 401.*FOUNDRY_API_KEY"),
        (httpx.Response(200, text="Bearer s3cret!"), "no list of models"),
        (httpx.Response(200, content=b"x" * 2_000), "ReadTimeout: no whole answer in time"),
    ],
)
def test_attaching_to_a_stranger_says_why_and_not_the_key(
    answer: httpx.Response, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a look at the key: a stranger may echo it, and may send without end."""
    monkeypatch.setattr(service_module, "MAX_BODY", 1_000)
    client = httpx.Client(transport=httpx.MockTransport(lambda _: answer))
    monkeypatch.setattr("httpx.stream", client.stream)
    stranger = Settings(endpoint="http://gateway/catalogs/local", api_key="s3cret")
    with pytest.raises(ServiceUnreachable, match=f"(?s){said}") as caught:
        Service(stranger).start()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "direct"),
    [
        ({}, None),
        ({"HTTP_PROXY": "http://proxy"}, "127.0.0.1,localhost,::1"),
        (
            {"HTTP_PROXY": "http://proxy", "NO_PROXY": "intranet"},
            "intranet,127.0.0.1,localhost,::1",
        ),
        ({"HTTP_PROXY": "http://proxy", "NO_PROXY": "*"}, None),
    ],
)
def test_this_machine_is_reached_without_a_proxy(
    given: dict[str, str], direct: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user excepts stays excepted; where there is no proxy, nothing is set."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("NO_PROXY", "no_proxy"):  # so that it is put back
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    service_module.keep_proxies_out()
    assert (os.environ.get("NO_PROXY"), os.environ.get("no_proxy")) == (
        (direct, direct) if direct else (given.get("NO_PROXY"), None)
    )


def test_a_socks_proxy_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx makes its proxies with the client, for this machine too: GNOME's form is mended."""
    monkeypatch.setenv("all_proxy", "socks://127.0.0.1:1080")
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:1080")
    service_module.keep_proxies_out()
    httpx.Client().close()


@pytest.mark.parametrize(
    ("model_id", "alias"),
    [("lab-tiny:1", "lab-tiny"), ("qwen-generic-cpu:3", "qwen"), ("odd", "odd"), ("a:b:1", "a:b")],
)
def test_an_alias_is_derived_from_an_id(model_id: str, alias: str) -> None:
    """The version goes, and the runtime's variant suffix."""
    assert alias_of(model_id) == alias
