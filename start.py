"""The workbook's one command. It needs Python 3.11 to 3.14 and nothing else.

    python start.py                  set up, then open JupyterLab on the first lesson
    python start.py --no-browser     the same on a server: print the address, open nothing
    python start.py test [...]       set up, then run all the tests; [...] goes to pytest
    python start.py doctor           say what works on this machine, and what to do about the rest

To set up is to install requirements.txt into .venv, beside this file. That needs the network once;
while nothing has changed it is skipped.
"""

import errno
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.request import getproxies

# An older Python must get as far as this sentence, so no syntax here is newer than Python 3.6;
# Python 2 refuses the next line and shows it, with the comment at its end.
PYTHONS: str = "Python 3.11 to 3.14"  # PYTHON 2 IS TOO OLD: run start.py with Python 3.11 to 3.14
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit(
        f"The workbook needs {PYTHONS}, and this is Python {platform.python_version()}.\n"
        "Get one from https://www.python.org/downloads/ and run start.py with it, for example:\n"
        "python3.13 start.py, or on Windows: py -3.13 start.py"
    )

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = str(BIN / ("python.exe" if os.name == "nt" else "python"))
STAMP = VENV / "installed.txt"  # written last: without it the installation did not finish
PIP_LOG = VENV / "pip.log"
DISK_GB = 1.5  # .venv takes 0.7, pip's downloads the rest
# All the tests: whole files, as the cells of a notebook have an order; many only wait.
SIDE_BY_SIDE = ["-n", "3", "--dist", "loadfile"]
PATIENCE_S = 5  # for a program that is to end

# Where foundry-local-sdk and its runtime have wheels, and the oldest system that these run on.
SYSTEMS = {
    ("Linux", "x86_64"): ("glibc", (2, 28)),
    ("Linux", "aarch64"): ("glibc", (2, 34)),
    ("Darwin", "arm64"): ("macOS", (14,)),
    ("Windows", "amd64"): ("Windows", (10,)),
    ("Windows", "arm64"): ("Windows", (10,)),
}

# Settings meant for another Python, pip or Jupyter. Proxies, certificates and indexes stay.
FOREIGN = {
    *("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONOPTIMIZE", "PYTHONWARNINGS"),
    *("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_PYTHON", "PIP_REQUIREMENT"),
    *("PIP_DRY_RUN", "PIP_NO_DEPS", "PIP_REQUIRE_HASHES", "JUPYTER_PATH"),
}

AGAIN = "Then run start.py again: it goes on where it stopped."
DISK_FULL = (
    f"The disk is full: the set-up needs {DISK_GB} GB in this folder and in "
    f"{tempfile.gettempdir()}. Make room. {AGAIN}"
)
NOT_WRITABLE = (
    "Perhaps JupyterLab, a terminal or an editor still uses .venv: close it. Or this folder is "
    f"read-only: copy it to a place of your own. {AGAIN}"
)
NO_NETWORK = (
    "The package index cannot be reached, and the set-up needs it once. Connect this machine to "
    "the network. Behind an office proxy, set the environment variable HTTPS_PROXY to its address "
    f"and PIP_CERT to its certificate file. {AGAIN}"
)
NO_PACKAGE = (
    "The package index, or the folder in PIP_FIND_LINKS, has no file of a package for this system "
    "and this Python. A folder must have been filled on such a system, with the same Python 3.x. "
    f"{AGAIN}"
)
LONG_PATH = (
    "The path of this folder is too long for Windows: move the workbook to a short one, such as "
    f"C:\\lab. {AGAIN}"
)
NO_SOCKS = (
    "pip cannot use a SOCKS proxy. Set HTTPS_PROXY to an http:// proxy and unset ALL_PROXY, or use "
    f"a network without a proxy. {AGAIN}"
)
PIP_SAYS = {  # in its log; the first that fits counts
    r"No space left|not enough space|Disk quota exceeded": DISK_FULL,
    r"Long Path support": LONG_PATH,
    r"dependencies for SOCKS": NO_SOCKS,
    r"Permission denied|Access is denied|Read-only file system|WinError (5|32)\b": NOT_WRITABLE,
    r"(?i)connection (broken|error)|timed ?out|name resolution|getaddrinfo|unreachable|ProxyError"
    r"|incomplete.?(read|download)|certificate.verify.failed": NO_NETWORK,
    r"No matching distribution found": NO_PACKAGE,
}


def why_unsupported(system: str, machine: str, base: str, release: str) -> str:
    """Say why Foundry Local cannot run on this machine; "" if it can."""
    needed, oldest = SYSTEMS.get((system, machine), ("", ()))
    if not needed:
        here = f"This is {system} with a Python made for {machine}."
        if system == "Darwin":
            here += " If the Mac has Apple silicon, run start.py with a Python made for that."
    elif base != needed:
        here = "This Linux has another C library (musl, as Alpine): use Debian, Ubuntu or Fedora."
    elif tuple(map(int, re.findall(r"\d+", release))) < oldest:
        here = f"This is {base} {release}: use a newer system."
    else:
        return ""
    return (
        "Foundry Local runs on 64-bit Windows 10 or newer, on macOS 14 or newer with Apple "
        f"silicon, and on 64-bit Linux with glibc 2.28 or newer (on ARM 2.34). {here}"
    )


def why_set_up(exists: bool, version: str, stamp: str, wanted: str) -> tuple[str, bool]:
    """Say why .venv must be set up ("" if it need not be), and if it must be made anew for that.

    `version` is what its Python says it is, "" if it says nothing. `stamp` and `wanted` are what
    was and what is to be installed, three lines each: the folder, the Python, a hash.
    """
    folder, python, _ = wanted.split("\n")
    if not exists:
        return "There is no .venv yet", True
    if not version:
        return ".venv is broken (its Python does not start, or has no pip)", True
    if version != python:
        return f".venv was made with Python {version}, and this is Python {python}", True
    if not stamp:
        return "The last installation did not finish", False
    if stamp.split("\n")[0] != folder:
        return ".venv was made for another folder (this one was moved or copied)", True
    return ("", False) if stamp == wanted else ("What is to be installed has changed", False)


def why_pip_failed(log: str) -> str:
    """Find in pip's log why it failed, and say what to do next; "" if that is not known."""
    return next((sentence for sign, sentence in PIP_SAYS.items() if re.search(sign, log)), "")


def why_os_failed(error: OSError) -> str:
    """Say what the operating system refused, and what to do next."""
    advice = {
        **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), NOT_WRITABLE),
        **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), DISK_FULL),
    }.get(error.errno or 0, "python start.py doctor may tell more.")
    return f"{error.strerror or error}: {error.filename}. {advice}"


def our_environment(theirs: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of what we run: as if .venv were activated, and nothing else."""
    ours = {name: value for name, value in theirs.items() if name not in FOREIGN}
    ours["PATH"] = os.pathsep.join((str(BIN), ours.get("PATH", os.defpath)))
    if sys.platform != "linux" and not any(name.lower().endswith("_proxy") for name in ours):
        # Any such variable hides the proxies that Windows and macOS keep elsewhere.
        ours |= {f"{scheme}_proxy": proxy for scheme, proxy in getproxies().items()}
    links = ours.get("PIP_FIND_LINKS")
    if links and Path(links).is_dir():
        ours["PIP_FIND_LINKS"] = Path(links).resolve().as_uri()  # pip takes a blank for an end
    others = ours.get("no_proxy") or ours.get("NO_PROXY")
    direct = ",".join(filter(None, (others, "127.0.0.1", "localhost", "::1")))
    ours |= {"NO_PROXY": direct, "no_proxy": direct}  # the service is here, behind no proxy
    return ours | {"VIRTUAL_ENV": str(VENV), "JUPYTER_PREFER_ENV_PATH": "1"}


def lab_arguments(browser: bool, root: bool) -> list[str]:
    """Build JupyterLab's command line: this machine only, no calls home, one Ctrl-C ends it."""
    return [
        *("-m", "jupyterlab", "-y", "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={ROOT}"),
        "--LabApp.default_url=/lab/tree/notebooks/00_welcome.ipynb",
        *("--LabApp.news_url=None", "--LabApp.extension_manager=readonly"),
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        *([] if browser else ["--no-browser"]),
        *(["--allow-root"] if root else []),
    ]


def this_machine() -> tuple[str, str, str, str]:
    """Return the system, the processor of this Python, and what wheels ask for: name, release."""
    system, machine = platform.system(), platform.machine()
    base, release = system, platform.version()
    if system == "Linux":
        base, release = platform.libc_ver()
    elif system == "Darwin":
        base, release = "macOS", platform.mac_ver()[0]
    elif system == "Windows":  # on ARM it also runs Pythons made for x64: ask this one
        machine = sysconfig.get_platform().rpartition("-")[2]
    if sys.maxsize < 2**32:
        machine = f"32-bit {machine}"
    return system, machine, base, release


def text_of(file: Path) -> str:
    """Read a file of .venv, "" if there is none."""
    return file.read_text("utf-8", "replace") if file.exists() else ""


def wanted_stamp() -> str:
    """Say what is to be installed, as why_set_up reads it."""
    what = b"".join((ROOT / name).read_bytes() for name in ("requirements.txt", "pyproject.toml"))
    return "{}\n{}.{}\n{}".format(ROOT, *sys.version_info[:2], hashlib.sha256(what).hexdigest())


def look_at_venv() -> tuple[str, bool]:
    """Return what why_set_up says of .venv as it is."""
    question = "import pip, sys; print('{}.{}'.format(*sys.version_info))"
    version = ""
    with suppress(OSError):  # there is no Python, or not one for this machine
        asked = subprocess.run([PYTHON, "-I", "-c", question], capture_output=True, text=True)
        version = asked.stdout.strip()
    return why_set_up(VENV.exists(), version, text_of(STAMP), wanted_stamp())


def fill(sentence: str, indent: str = "") -> str:
    """Break a long sentence into lines, but no path in it."""
    return textwrap.fill(
        sentence, 96, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def run(*command: str, **more: str) -> int:
    """Run a program as in .venv, return its exit code, and leave it behind in no case."""
    child = subprocess.Popen(command, cwd=ROOT, env=our_environment(os.environ) | more)
    try:
        code = child.wait()
    except KeyboardInterrupt:  # the terminal told the child too: let it put its things away
        with suppress(subprocess.TimeoutExpired):
            child.wait(PATIENCE_S)
        raise
    finally:
        for end in (child.terminate, child.kill):
            if child.poll() is None:
                end()
                with suppress(subprocess.TimeoutExpired):
                    child.wait(PATIENCE_S)
    return code if code >= 0 else 128 - code


def make_venv() -> None:
    """Make an empty .venv, in the place of any other."""
    if None in map(importlib.util.find_spec, ("venv", "ensurepip")):
        package = "python{}.{}-venv".format(*sys.version_info)
        sys.exit(
            "This Python cannot make a .venv: its module venv or ensurepip is missing.\n"
            f"On Debian and Ubuntu add it with: sudo apt install {package}\n"
            "Elsewhere install Python from https://www.python.org/downloads/. Then start again."
        )
    if shutil.disk_usage(ROOT).free < DISK_GB * 1e9:
        sys.exit(fill(DISK_FULL))
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(VENV)
    VENV.mkdir()  # by ourselves, to learn why if that is refused
    python = getattr(sys, "_base_executable", sys.executable)  # not the one just removed
    if run(python, "-m", "venv", str(VENV)):
        sys.exit("Python could not make .venv: its reason is above.")


def set_up() -> None:
    """Make .venv hold what is to be installed. Mostly it already does."""
    why, anew = look_at_venv()
    if not why:
        return
    unsupported = why_unsupported(*this_machine())
    if unsupported:
        sys.exit(fill(unsupported))
    make = "making a new one, then " if anew else ""
    print(f"{why}: {make}installing requirements.txt (the first time some minutes).", flush=True)
    STAMP.unlink(missing_ok=True)
    if anew:
        make_venv()
    PIP_LOG.unlink(missing_ok=True)
    pip = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-user"]
    if run(*pip, "--log", str(PIP_LOG), "-r", str(ROOT / "requirements.txt")):
        unknown = f"pip failed: its reasons are above, and in full in {PIP_LOG}"
        sys.exit(fill(why_pip_failed(text_of(PIP_LOG)) or unknown))
    PIP_LOG.unlink(missing_ok=True)
    new = STAMP.with_suffix(".new")
    new.write_text(wanted_stamp(), encoding="utf-8")
    new.replace(STAMP)


def doctor() -> int:
    """Print what works here and what to do about the rest; 0 if all works."""
    machine = this_machine()
    why, anew = look_at_venv()
    free = shutil.disk_usage(ROOT).free / 1e9
    fix = why and f"python start.py sets it up. {why_pip_failed(text_of(PIP_LOG))}"
    findings = [
        ("start.py", f"Python {platform.python_version()}, {sys.executable}", ""),
        ("system", "{} {}, {} {}".format(*machine), why_unsupported(*machine)),
        ("disk", f"{free:.0f} GB free", DISK_FULL if why and free < DISK_GB else ""),
        (".venv", why or "ready", fix),
    ]
    for what, detail, fix in findings:
        print(f"{'NOT' if fix else 'ok '}  {what:<10} {detail}", flush=True)
        if fix:
            print(fill(f"     \u2192 {fix}", indent="       "), flush=True)
    if STAMP.exists() and not anew:
        return run(PYTHON, "-m", "foundry_lab", "doctor") or int(any(fix for *_, fix in findings))
    return 1


def obey(arguments: list[str]) -> int:
    """Do what the command line asks for; return the exit code."""
    if arguments == ["doctor"]:
        return doctor()
    if arguments[:1] == ["test"]:
        set_up()
        options = arguments[1:] or SIDE_BY_SIDE
        return run(PYTHON, "-m", "pytest", *options, FOUNDRY_MODEL="lab-tiny")
    if arguments in ([], ["--no-browser"]):
        set_up()
        run(PYTHON, "-m", "foundry_lab", "exercises")  # copies to work in, where they are missing
        print("JupyterLab starts; Ctrl-C in this window ends it.", flush=True)
        as_root = getattr(os, "geteuid", lambda: 1)() == 0
        return run(PYTHON, *lab_arguments(browser=not arguments, root=as_root))
    print(__doc__)
    return 0 if arguments in (["-h"], ["--help"]) else 2


def main() -> int:
    """Obey the command line; end with a sentence, not with a traceback."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return obey(sys.argv[1:])
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except OSError as error:
        sys.exit(fill(why_os_failed(error)))


if __name__ == "__main__":
    sys.exit(main())
