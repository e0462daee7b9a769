"""start.py: its decisions, and the real script in a small project, with real pip and no network."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

import start

REPOSITORY = Path(start.__file__).parent
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to a process")

FAKE_PROGRAMS = {  # what start.py runs in .venv, so that a test sees how
    "pytest.py": "import os, sys; print(os.environ['FOUNDRY_MODEL'], sys.argv[1:]); sys.exit(3)",
    "jupyterlab.py": "print('JupyterLab was started')",
    "foundry_lab/__main__.py": "import sys; print('the lab was asked:', sys.argv[1:])",
}


def run(project: Path, *arguments: str, before: str = "", **more: str) -> tuple[int, str]:
    """Run the project's start.py, after the lines `before`; return its exit code and its output."""
    script = str(project / "start.py")
    code = f"import os, platform, runpy, shutil, sys\nsys.argv = {[script, *arguments]}\n{before}\n"
    code += f"runpy.run_path({script!r}, run_name='__main__')"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(project.anchor),
        env=os.environ | OFFLINE | more,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return ended.returncode, " ".join(ended.stdout.split())


def new_project(folder: Path) -> Path:
    """Lay out start.py, nothing to install, and programs that only say what they were told."""
    for name, code in FAKE_PROGRAMS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    shutil.copy(start.__file__, folder)
    (folder / "requirements.txt").write_text("# nothing\n")
    (folder / "pyproject.toml").write_text("")
    return folder


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """The first run in a fresh clone whose .venv is broken: the only .venv that is really made."""
    project = new_project(tmp_path_factory.mktemp("clone") / "Übung eins")
    (project / ".venv").mkdir()
    (project / ".venv" / "half an old one").touch()
    return project, *run(project, "test", "-k", "two words")


@pytest.fixture
def project(first_run: tuple[Path, int, str], tmp_path: Path) -> Path:
    """A project of one's own, set up: a copy of the first, its stamp made to fit."""
    copy = Path(shutil.copytree(first_run[0], tmp_path / "Übung zwei", symlinks=True))
    stamp = copy / ".venv" / start.STAMP.name
    stamp.write_text(stamp.read_text("utf-8").replace(str(first_run[0]), str(copy)), "utf-8")
    return copy


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A project that is not set up."""
    return new_project(tmp_path / "bare")


def replace_pip(project: Path, code: str) -> None:
    """Put something else in the place of the pip in .venv."""
    (pip,) = (project / ".venv").rglob("site-packages/pip/__main__.py")
    pip.write_text(code)


@contextmanager
def started(
    command: list[str], environment: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """Start a program elsewhere, as in a terminal of its own; yield it and its lines; end it.

    It hears Ctrl-C even where this test run itself is in the background and does not.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command,
        cwd=Path(sys.executable).anchor,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        try:
            yield process, iter(process.stdout.readline, "")
        finally:
            process.kill()
            signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (("Linux", "x86_64", "glibc", "2.28"), ""),
        (("Linux", "x86_64", "glibc", "2.17"), "This is glibc 2.17: use a newer system"),
        (("Linux", "aarch64", "glibc", "2.31"), "This is glibc 2.31"),
        (("Linux", "x86_64", "", ""), "musl"),
        (("Linux", "32-bit x86_64", "glibc", "2.39"), "made for 32-bit x86_64"),
        (("Darwin", "arm64", "macOS", "14.0"), ""),
        (("Darwin", "arm64", "macOS", "13.7.1"), "This is macOS 13.7.1"),
        (("Darwin", "x86_64", "macOS", "15.5"), "If the Mac has Apple silicon"),
        (("Windows", "amd64", "Windows", "10.0.19045"), ""),
        (("Windows", "arm64", "Windows", "10.0.26100"), ""),
        (("Windows", "win32", "Windows", "10.0.19045"), "made for win32"),
        (("FreeBSD", "amd64", "FreeBSD", "14"), "This is FreeBSD"),
    ],
)
def test_unsupported_machines_are_told_why(
    machine: tuple[str, str, str, str], expected: str
) -> None:
    """Only systems for which the runtime has wheels pass; each other one is told what it lacks."""
    said = start.why_unsupported(*machine)
    assert expected in said
    assert bool(said) == bool(expected)


def test_this_machine_is_supported() -> None:
    """What this machine is found to be is one of the supported ones, or no test would run here."""
    assert start.why_unsupported(*start.this_machine()) == ""


@pytest.mark.parametrize(
    ("exists", "version", "stamp", "why", "anew"),
    [
        (False, "", "", "There is no .venv yet", True),
        (True, "", "/lab\n3.12\nabc", "is broken", True),
        (True, "3.11", "/lab\n3.11\nabc", "made with Python 3.11, and this is Python 3.12", True),
        (True, "3.12", "/other\n3.12\nabc", "made for another folder", True),
        (True, "3.12", "", "did not finish", False),
        (True, "3.12", "/lab\n3.12\nold", "has changed", False),
        (True, "3.12", "/lab\n3.12\nabc", "", False),
    ],
)
def test_set_up_does_no_more_than_needed(
    exists: bool, version: str, stamp: str, why: str, anew: bool
) -> None:
    """.venv is kept as it is, installed into, or made anew, each for its own reason."""
    said = start.why_set_up(exists, version, stamp, "/lab\n3.12\nabc")
    assert why in said[0]
    assert (bool(said[0]), said[1]) == (bool(why), anew)


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        ("Failed to resolve 'index' ([Errno -3] Temporary failure in name resolution)", "network"),
        ("WARNING: Retrying (...) after connection broken by 'ProxyError('Cannot connect", "proxy"),
        ("ReadTimeoutError(\"HTTPSConnectionPool(host='index'): Read timed out.", "network"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "PIP_CERT"),
        ("error: incomplete-download", "network"),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "disk is full"),
        ("[WinError 32] Access is denied: 'C:\\lab\\.venv'", "still uses .venv"),
        ("[WinError 32] Der Prozess kann nicht zugreifen: 'C:\\lab\\.venv'", "still uses .venv"),
        (
            "[Errno 2] No such file or directory. HINT: ... have Windows Long Path support",
            "C:\\lab",
        ),
        ("ERROR: Could not install packages: Missing dependencies for SOCKS support.", "ALL_PROXY"),
        ("ERROR: No matching distribution found for httpx==99", "the same Python 3.x"),
        ("connection broken: x\nERROR: No matching distribution found for httpx==99", "network"),
        ("ERROR: Failed to build installable wheels", ""),
    ],
)
def test_what_pip_says_is_understood(log: str, sentence: str) -> None:
    """pip's usual troubles are told apart, and an unknown one is not given a wrong name."""
    said = start.why_pip_failed(log)
    assert sentence in said
    assert bool(said) == bool(sentence)


def test_settings_of_another_python_are_dropped_and_the_way_to_the_index_kept() -> None:
    """Nothing of another environment is left, but an office's proxy, though not to ourselves."""
    office = {"HTTPS_PROXY": "proxy", "PIP_INDEX_URL": "index", "PIP_CERT": "file", "HOME": "home"}
    foreign = {"PYTHONPATH": "x", "PYTHONHOME": "x", "PIP_USER": "1", "PIP_TARGET": "x"}
    office["NO_PROXY"] = "intranet"
    ours = start.our_environment(office | foreign | {"VIRTUAL_ENV": "other", "PATH": "bin"})
    assert ours == office | {
        "VIRTUAL_ENV": str(start.VENV),
        "PATH": f"{start.BIN}{os.pathsep}bin",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "NO_PROXY": "intranet,127.0.0.1,localhost,::1",
        "no_proxy": "intranet,127.0.0.1,localhost,::1",
    }


def test_a_folder_of_packages_may_have_a_blank_in_its_name(tmp_path: Path) -> None:
    """pip splits its list of folders at blanks, so an existing folder becomes one URL."""
    (stick := tmp_path / "NO NAME").mkdir()
    for given, passed in (
        (str(stick), stick.resolve().as_uri()),
        ("https://example.org/a https://example.org/b",) * 2,
    ):
        assert start.our_environment({"PIP_FIND_LINKS": given})["PIP_FIND_LINKS"] == passed


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EROFS, "read-only"), (errno.ENOSPC, "disk is full"), (errno.EIO, "start.py doctor")],
)
def test_refusals_of_the_system_are_explained(number: int, advice: str) -> None:
    """An OSError becomes what happened, to which file, and what to do."""
    said = start.why_os_failed(OSError(number, os.strerror(number), "/lab/.venv"))
    assert said.startswith(f"{os.strerror(number)}: /lab/.venv. ")
    assert advice in said


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        ("sys.version_info = (3, 15, 0, 'final', 0)", "The workbook needs Python 3.11 to 3.14"),
        ("sys.version_info = (3, 10, 9, 'final', 0)", "The workbook needs Python 3.11 to 3.14"),
        ("platform.system = lambda: 'Haiku'", "Foundry Local runs on 64-bit Windows 10"),
        ("sys.modules['ensurepip'] = None", "-venv"),
        ("shutil.disk_usage = lambda _: type('', (), {'free': 1_000_000})", "The disk is full"),
        ("def no(path, mode=0): raise OSError(30, 'Read-only', path)\nos.mkdir = no", "Read-only:"),
        ("def no(path): raise OSError(13, 'In use', path)\nshutil.rmtree = no", "still uses .venv"),
    ],
)
def test_set_up_ends_with_a_sentence(bare: Path, before: str, sentence: str) -> None:
    """Where the set-up cannot go on it says why, without a traceback."""
    if "rmtree" in before:
        (bare / ".venv").mkdir()
    code, output = run(bare, "test", before=before)
    assert code == 1
    assert sentence in output
    assert "Traceback" not in output
    assert not (bare / ".venv" / start.STAMP.name).exists()


def old_pythons() -> list[str]:
    """Find the Pythons older than 3.11 that are on this machine."""
    named = [
        shutil.which(f"python{version}") for version in ("2.7", *(f"3.{n}" for n in range(6, 11)))
    ]
    found = [Path(path) for path in named if path and "shims" not in path]
    for version in ("2.7", "3.[6-9]", "3.10"):
        found += Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    return [str(path) for path in found]


@pytest.mark.skipif(not old_pythons(), reason="no old Python on this machine")
def test_real_old_pythons_are_refused() -> None:
    """Pythons that know neither f-strings nor today's types still say which Python is needed."""
    for python in old_pythons():
        command = [python, start.__file__]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 1
        assert "Python 3.11 to 3.14" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_first_run_replaces_a_broken_venv_and_runs_the_tests(
    first_run: tuple[Path, int, str],
) -> None:
    """From a broken .venv one command sets up, hands arguments to pytest and its exit code back."""
    project, code, output = first_run
    assert ".venv is broken" in output
    assert "lab-tiny ['-k', 'two words']" in output
    assert code == 3
    assert not (project / ".venv" / "half an old one").exists()
    assert (project / ".venv" / start.STAMP.name).exists()
    assert not (project / ".venv" / start.PIP_LOG.name).exists()


@POSIX
@pytest.mark.parametrize("there", [True, False], ids=["a folder elsewhere", "nothing"])
def test_a_link_in_the_place_of_venv_is_replaced(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it leads to is not ours: the link goes, and what is behind it stays."""
    monkeypatch.setattr(start, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(start, "run", lambda *_: 0)
    if there:
        (tmp_path / "elsewhere").mkdir()
    start.VENV.symlink_to(tmp_path / "elsewhere")
    start.make_venv()
    assert start.VENV.is_dir()
    assert not start.VENV.is_symlink()
    assert (tmp_path / "elsewhere").exists() == there


def test_pip_runs_only_when_something_changed(project: Path) -> None:
    """With the stamp in place pip is not called; one more requirement, and it is."""
    replace_pip(project, "raise SystemExit('pip was called')")
    code, output = run(project, "test")
    assert (code, output) == (3, f"lab-tiny {start.SIDE_BY_SIDE}")

    (project / "requirements.txt").write_text("httpx\n")
    code, output = run(project, "test")
    assert code == 1
    assert "What is to be installed has changed" in output
    assert "pip was called" in output
    assert not (project / ".venv" / start.STAMP.name).exists()


def test_an_unfinished_installation_is_resumed_whatever_else_is_active(project: Path) -> None:
    """Without a stamp pip installs again into the same .venv, whatever the environment says."""
    stamp, kept = project / ".venv" / start.STAMP.name, project / ".venv" / "kept"
    before = stamp.read_text("utf-8")
    stamp.unlink()
    kept.touch()
    code, output = run(
        project,
        *("test", "--lf"),
        before="os.environ.update(PYTHONHOME='nowhere', PIP_TARGET='nowhere', PIP_USER='1')",
    )
    assert code == 3
    assert "The last installation did not finish" in output
    assert stamp.read_text("utf-8") == before
    assert kept.exists()


def test_a_learner_gets_copies_of_the_exercises_before_jupyterlab(project: Path) -> None:
    """Whoever starts the lab has sheets to work in."""
    code, output = run(project, "--no-browser")
    assert code == 0
    copied, started_at = "the lab was asked: ['exercises']", "JupyterLab was started"
    assert 0 <= output.index(copied) < output.index(started_at)


def test_without_a_network_start_says_so_and_doctor_remembers(project: Path) -> None:
    """Real pip, sent to an index where nothing listens, fails; that is named as what it is."""
    (project / "requirements.txt").write_text("httpx==0.28.1\n")
    code, output = run(
        project,
        "test",
        PIP_NO_INDEX="0",
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_FIND_LINKS="",
        PIP_RETRIES="0",
        NO_PROXY="*",
    )
    assert code == 1
    assert "ERROR: No matching distribution" in output
    assert "The package index cannot be reached" in output
    assert "Traceback" not in output
    code, output = run(project, "doctor")
    assert code == 1
    assert "The package index cannot be reached" in output


def test_a_failure_of_pip_that_is_not_the_networks_is_not_called_so(project: Path) -> None:
    """A requirement that does not exist leaves pip's own words, and what they mean."""
    (project / "requirements.txt").write_text("httpx==99\n")
    code, output = run(project, "test", PIP_FIND_LINKS="")
    assert code == 1
    assert "ERROR: No matching distribution found for httpx==99" in output
    assert "has no file of a package for this system and this Python" in output
    assert "cannot be reached" not in output


def test_a_failure_of_pip_that_nobody_knows_is_left_to_its_log(project: Path) -> None:
    """Where the reason is none of the usual ones, pip's words stay, and where all of them are."""
    (project / "requirements.txt").write_text("no requirement at all\n")
    code, output = run(project, "test")
    assert code == 1
    assert "ERROR: Invalid requirement" in output
    assert "pip failed: its reasons are above, and in full in" in output
    assert "cannot be reached" not in output


def test_doctor_helps_before_the_set_up_and_asks_the_lab_after_it(
    bare: Path, project: Path
) -> None:
    """Without a .venv, or with a broken one, doctor says so; else the package has the last word."""
    code, output = run(bare, "doctor")
    assert code == 1
    assert "NOT .venv There is no .venv yet" in output
    code, output = run(project, "doctor")
    assert code == 0
    assert output.endswith("the lab was asked: ['doctor']")
    shutil.rmtree(project / ".venv" / start.BIN.name)
    code, output = run(project, "doctor")
    assert code == 1
    assert output.endswith("\u2192 python start.py sets it up.")


def test_help_and_mistyped_arguments(bare: Path) -> None:
    """--help and anything unknown print the four commands and set nothing up."""
    for argument, expected in (("--help", 0), ("tset", 2)):
        code, output = run(bare, argument)
        assert code == expected
        assert "python start.py doctor" in output
    assert not (bare / ".venv").exists()


@POSIX
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_terminate_leave_nothing_behind(
    project: Path, number: signal.Signals, expected: int
) -> None:
    """In mid-install Ctrl-C (all processes of the terminal hear it) or SIGTERM (only start.py
    does) end start.py and pip, and what is half installed is not taken for finished."""
    replace_pip(project, "import time; print('pip runs', flush=True); time.sleep(60)")
    (project / "requirements.txt").write_text("httpx\n")
    with started([sys.executable, str(project / "start.py")], os.environ) as (process, lines):
        assert "pip runs\n" in lines
        (pip,) = psutil.Process(process.pid).children()
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        output = "".join(lines)
        process.wait()
    assert process.returncode == expected
    assert output.endswith("\nStopped.\n" if number == signal.SIGINT else "")
    assert not pip.is_running()
    assert not (project / ".venv" / start.STAMP.name).exists()


@POSIX
def test_a_killed_program_gives_the_shells_exit_code() -> None:
    """A program ended by signal 9 is reported as 137, as a shell does."""
    assert start.run(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)") == 137


def test_jupyterlab_serves_the_first_lesson_and_ends_with_all_its_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real JupyterLab opens on the first lesson, calls nobody, runs this environment's kernel
    although the user has another by that name, and one Ctrl-C ends it and its kernel."""
    lesson = "notebooks/00_welcome.ipynb"
    root, users = tmp_path / "Übung drei", tmp_path / "users"
    (root / "notebooks").mkdir(parents=True)
    shutil.copy(REPOSITORY / lesson, root / lesson)
    (users / "kernels" / "python3").mkdir(parents=True)
    other = {"argv": ["no-such-program"], "display_name": "another", "language": "python"}
    (users / "kernels" / "python3" / "kernel.json").write_text(json.dumps(other))
    monkeypatch.setattr(start, "ROOT", root)
    theirs = {f"JUPYTER_{kind}_DIR": str(users) for kind in ("DATA", "CONFIG", "RUNTIME")}

    with started(
        [sys.executable, *start.lab_arguments(browser=False, root=True)],
        start.our_environment(os.environ | theirs | {"JUPYTER_PREFER_ENV_PATH": "0"}),
    ) as (server, lines):
        url = next(line for line in lines if "token=" in line).split()[-1]
        page, _, token = url.partition("?token=")
        base = page.removesuffix(f"/lab/tree/{lesson}")
        transport = httpx.HTTPTransport(retries=5)  # it listens a little after it prints this
        with httpx.Client(
            base_url=base,
            headers={"Authorization": f"token {token}"},
            transport=transport,
            timeout=20,
        ) as client:
            html = client.get(page).text
            found = client.get(f"/api/contents/{lesson}", params={"content": 0})
            kernel = client.post("/api/kernels", json={"name": "python3"})
        children = psutil.Process(server.pid).children(recursive=True)
        server.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        server.wait(timeout=20)
    assert base.startswith("http://127.0.0.1:")
    assert f'"treePath": "{lesson}"' in html
    assert '"news": {"disabled": true}' in html
    assert '"can_install": false' in html
    assert found.status_code == 200
    assert kernel.status_code == 201
    assert children
    assert psutil.wait_procs(children, timeout=5)[1] == []
