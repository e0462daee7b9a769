"""The command line: doctor and serve."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from foundry_lab import Service
from foundry_lab.faults import Always, FaultProxy, Stall
from foundry_lab.settings import BUNDLED_MODEL, Settings


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "foundry_lab", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        timeout=60,
        check=False,
    )


def serving() -> tuple[subprocess.Popen[str], str]:
    """Start `serve`; return it and the URL that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "foundry_lab", "serve"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()[-1]


def test_doctor_finds_all_well() -> None:
    """On a machine that works every line is ok, up to a real answer of the model."""
    report = run("doctor")
    assert report.returncode == 0, report.stdout
    assert "status 200" in report.stdout
    assert "NOT" not in report.stdout


def test_doctor_says_what_to_do() -> None:
    """What doesn't work is marked, followed by the way out, and the exit code tells."""
    report = run("doctor", FOUNDRY_MODEL_DIR=str(Path(__file__).parent))
    assert report.returncode == 1
    assert "NOT  service" in report.stdout
    assert "→ Point FOUNDRY_MODEL_DIR" in report.stdout


def test_doctor_names_a_bad_setting() -> None:
    """A variable that can't be used is a finding, not a traceback."""
    report = run("doctor", FOUNDRY_TIMEOUT="soon")
    assert report.returncode == 1
    assert "FOUNDRY_TIMEOUT" in report.stdout
    assert report.stderr == ""


def test_doctor_reports_an_answer_that_does_not_come() -> None:
    """A timeout is a finding too."""
    silent = Always(Stall())
    with (
        Service(Settings(model=BUNDLED_MODEL)) as service,
        FaultProxy(service.url, silent, only="/v1/chat/completions") as proxy,
    ):
        report = run("doctor", FOUNDRY_ENDPOINT=proxy.url, FOUNDRY_TIMEOUT="0.5")
    assert report.returncode == 1
    assert "NOT  answer" in report.stdout
    assert report.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal of this kind")
def test_serve_serves_until_ctrl_c() -> None:
    """It prints the URL that FOUNDRY_ENDPOINT takes, and Ctrl-C ends it without a traceback."""
    process, url = serving()
    assert httpx.get(f"{url}/models/loaded").json() == ["lab-tiny:1"]
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=20)
    assert (process.returncode, complaint) == (0, "")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models/loaded")


def test_serve_refuses_what_is_no_port_and_what_is_taken(service: Service) -> None:
    """Both get one clear message and a failing exit code."""
    assert "is not a port" in run("serve", "--port", "99999").stderr
    taken = run("serve", "--port", str(service.port))
    assert taken.returncode == 1
    assert "→ Stop the program that uses the port" in taken.stderr
    assert "Traceback" not in taken.stderr


def test_serve_says_when_there_is_nothing_to_serve() -> None:
    """A service that runs already is not started, and one that was killed is no success."""
    refused = run("serve", FOUNDRY_ENDPOINT="http://127.0.0.1:9")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "→ Unset it" in refused.stderr
    process, url = serving()
    root = url.removesuffix("/catalogs/local")
    psutil.Process(httpx.get(f"{root}/status").json()["pid"]).kill()
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (1, "The service has ended.\n")


def test_a_folder_that_is_none_gets_a_sentence(tmp_path: Path) -> None:
    """What the operating system refuses is no traceback, and doctor knows of it."""
    file = tmp_path / "file"
    file.touch()
    refused = run("exercises", FOUNDRY_EXERCISES=str(file))
    assert refused.returncode == 1
    assert str(file) in refused.stderr
    assert "Traceback" not in refused.stderr
