"""The doctor: what commonly breaks on a learner's machine is found, with what to do about it."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from foundry_lab import Service, doctor
from foundry_lab.doctor import Finding, examine
from foundry_lab.faults import Always, FaultProxy, Pace
from foundry_lab.machine import packages
from foundry_lab.settings import BUNDLED_MODEL_DIR


def find(what: str) -> Finding:
    """Examine this machine until there is a finding of that name."""
    return next(finding for finding in examine() if finding.what == what)


def test_packages_are_compared_with_the_requirements(tmp_path: Path) -> None:
    """One that is missing fails, another version warns; both are named, and what to do."""
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("-e .\nhttpx==0.28.1\nno-such-package==1.0  # why\n", encoding="utf-8")
    missing = packages(requirements)
    assert (missing.status, missing.detail) == ("fail", "missing: no-such-package")
    assert "python start.py" in missing.fix
    requirements.write_text("httpx==0.1\npsutil==7.2.2\n", encoding="utf-8")
    other = packages(requirements)
    assert (other.status, other.ok) == ("warn", True)
    assert "httpx 0.28.1, not 0.1" in other.detail
    assert "psutil" not in other.detail
    assert packages().status == "ok"


def test_without_a_package_it_still_speaks() -> None:
    """Where httpx can't be imported there is a finding and a way out, and no traceback."""
    program = (
        "import runpy, sys; sys.modules['httpx'] = None; sys.argv = ['foundry_lab', 'doctor']; "
        "runpy.run_module('foundry_lab', run_name='__main__')"
    )
    run = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", program],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("NOT  packages   import of httpx halted")
    assert "→ Run `python start.py`" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_proxy_that_catches_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It warns unless 127.0.0.1 is excepted, and does not show the proxy, which may hold a key."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://me:secret@127.0.0.1:9")
    assert find("proxy").status == "ok"
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "example.org")
    found = find("proxy")
    assert found.status == "warn"
    assert "NO_PROXY=127.0.0.1,localhost,::1" in found.fix
    assert "secret" not in str(found)


def test_a_folder_where_nothing_can_be_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both the lessons' folder and one's own are tried; one that is to be made is not made here."""
    monkeypatch.setenv("FOUNDRY_EXERCISES", str(tmp_path / "not" / "yet"))
    assert (find("notebooks").status, find("exercises").status) == ("ok", "ok")
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "file").touch()
    monkeypatch.setenv("FOUNDRY_EXERCISES", str(tmp_path / "file"))
    assert find("exercises").status == "warn"

    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    for what in ("notebooks", "exercises"):
        assert find(what).status == "warn"
        assert "Permission denied" in find(what).detail


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FOUNDRY_MODELDIR": "x"}, "FOUNDRY_MODELDIR is set, and nobody reads it."),
        ({"FOUNDRY_TIMEOUT_S": "9"}, "FOUNDRY_TIMEOUT_S is set, and nobody reads it."),
        ({"FOUNDRY_MODEL_DIR": "x"}, "FOUNDRY_MODEL is not used, as FOUNDRY_MODEL_DIR is set."),
        (
            {"FOUNDRY_MODEL_DIR": "x", "FOUNDRY_ENDPOINT": "http://127.0.0.1:9"},
            "FOUNDRY_MODEL_DIR is not used, as FOUNDRY_ENDPOINT is set.",
        ),
    ],
)
def test_variables_that_do_nothing(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    """A name that is nearly right, and one that another overrules, are said: both are silent."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = find("settings")
    assert (found.status, found.detail) == ("warn", expected)
    assert found.fix


def test_other_programs_variables_are_their_own_business(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FOUNDRY_ name that resembles none of ours is not remarked on."""
    monkeypatch.setenv("FOUNDRY_PROJECT_ENDPOINT", "x")
    assert find("settings").status == "ok"


def test_a_setting_that_cant_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called by its name and by its kind."""
    monkeypatch.setenv("FOUNDRY_RETRIES", "many")
    found = find("settings")
    assert found.status == "fail"
    assert "FOUNDRY_RETRIES is 'many'" in found.detail


@pytest.mark.parametrize(
    ("model", "gigabytes", "status"),
    [("lab-tiny", 1, "ok"), ("lab-tiny", 0.1, "warn"), ("phi-4-mini", 1, "warn")],
)
def test_the_disk_is_as_large_as_what_is_to_come(
    monkeypatch: pytest.MonkeyPatch, model: str, gigabytes: float, status: str
) -> None:
    """One gigabyte will do for the bundled model, and not for one that is downloaded."""
    usage = SimpleNamespace(free=gigabytes * 1e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setenv("FOUNDRY_MODEL", model)
    assert find("disk").status == status


def test_a_slow_machine_is_told_by_its_timeout(
    monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    """Ten pieces a second are too few for 512 tokens in 30 s, and enough in 300."""
    with FaultProxy(service.url, Always(Pace(10)), only="/chat/") as proxy:
        monkeypatch.delenv("FOUNDRY_MODEL")
        monkeypatch.setenv("FOUNDRY_ENDPOINT", proxy.url)
        slow = find("speed")
        monkeypatch.setenv("FOUNDRY_TIMEOUT", "300")
        patient = find("speed")
    assert slow.status == "warn"
    assert "FOUNDRY_TIMEOUT is 30 s" in slow.detail
    assert "FOUNDRY_MODEL=lab-tiny" in slow.fix
    assert patient.status == "ok"


def test_a_damaged_model_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With other line ends in its chat template lab-tiny answers nonsense, with status 200."""
    assert find("lab-tiny").status == "ok"
    copy = shutil.copytree(BUNDLED_MODEL_DIR, tmp_path / "lab-tiny")
    template = copy / "chat_template.jinja"
    template.write_bytes(template.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setattr(doctor, "BUNDLED_MODEL_DIR", copy)
    found = find("lab-tiny")
    assert found.status == "fail"
    assert found.detail.endswith(": chat_template.jinja")
    template.unlink()
    assert find("lab-tiny") == found


def test_a_key_that_a_gateway_echoes_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the doctor prints goes into reports for all to read."""
    monkeypatch.setenv("FOUNDRY_API_KEY", "s3cret")
    refusal = httpx.Response(401, text="x" * 190 + " wrong key: s3cret")
    monkeypatch.setattr(httpx, "post", lambda *_, **__: refusal)
    found = find("answer")
    assert found.status == "fail"
    assert "s3" not in str(found)


def test_what_a_system_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory warns; where TCP_QUICKACK is missing it says which lesson that concerns."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e8))
    monkeypatch.setattr(doctor, "QUICK_ACK", None)
    findings = {finding.what: finding for finding in examine()}
    assert findings["memory"].status == "warn"
    assert "0.1 GB free" in findings["memory"].detail
    assert "no TCP_QUICKACK here" in findings["quick ACK"].detail
    assert all(finding.ok for finding in findings.values())


def test_a_system_that_refuses_to_start_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the operating system is a finding too."""

    def refuse(_: Service) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Service, "start", refuse)
    found = find("service")
    assert found.status == "fail"
    assert "No space left on device" in found.detail
    assert tempfile.gettempdir() in found.fix


def test_lines_fit_and_show_what_to_do() -> None:
    """The mark comes first, an arrow before what to do, and nothing is wider than a page."""
    words = "word " * 40
    for status, mark in (("ok", "ok   it"), ("warn", "warn it"), ("fail", "NOT  it")):
        text = str(Finding("it", status, words, words))  # type: ignore[arg-type]
        assert text.startswith(mark)
        assert max(map(len, text.splitlines())) <= 96
        assert ("\n     → word" in text) is (status != "ok")
