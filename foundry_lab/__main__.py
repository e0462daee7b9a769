"""``python -m foundry_lab doctor | serve | faults | progress | reset | exercises``."""

import argparse
import contextlib
import io
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from foundry_lab.machine import import_failed

try:
    from foundry_lab.checks.record import progress_text
    from foundry_lab.checks.sheets import copy_sheets, reset
    from foundry_lab.doctor import examine
    from foundry_lab.errors import FoundryLabError, SettingsError
    from foundry_lab.faults import KINDS, FaultProxy, plan_from
    from foundry_lab.service import Service
    from foundry_lab.settings import Settings
except ImportError as error:  # a package is missing, or not the one that it should be
    sys.exit(str(import_failed(error)))

if TYPE_CHECKING:
    from collections.abc import Callable

FAULTS = """\
Several faults take turns. With @SHARE, a number from 0 to 1, each request draws one at random, and
the rest passes. foundry_lab/faults/kinds.py says what each of them is and which fields it has.

  python -m foundry_lab faults --fault Status:code=429,retry_after=2
  python -m foundry_lab faults --fault CutBody:after_events=5,how=close@0.2 --fault Stall@0.1
  python -m foundry_lab faults --only /v1/chat --fault Reset --to http://127.0.0.1:5273
"""


def main() -> int:
    for stream in (sys.stdout, sys.stderr):  # a Windows console may know no arrow
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    parser = argparse.ArgumentParser(
        prog="python -m foundry_lab", description="Foundry Local, by hand"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what works on this machine, and what to do about the rest")
    serve = commands.add_parser("serve", help="run the service until Ctrl-C, for any other program")
    serve.add_argument("--port", type=_port, default=0, help="0, the default, takes a free one")
    _add_faults(
        commands.add_parser(
            "faults",
            help="run a proxy in front of the service, where things go wrong, until Ctrl-C",
            epilog=FAULTS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    commands.add_parser("exercises", help="copy the exercises into your folder, where missing")
    commands.add_parser("progress", help="which exercises are done, and which is next")
    reset = commands.add_parser("reset", help="one exercise as it came; keeps a backup of yours")
    reset.add_argument("exercise", metavar="NAME", help="such as 04-2")
    arguments = parser.parse_args()
    actions: dict[str, Callable[[], int]] = {
        "doctor": _doctor,
        "serve": lambda: _serve(arguments.port),
        "faults": lambda: _faults(arguments),
        "exercises": _exercises,
        "progress": _progress,
        "reset": lambda: _reset(arguments.exercise),
    }
    try:
        return actions[arguments.command]()
    except FoundryLabError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename}"
        print(f"{reason}\n→ python start.py doctor may tell more.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _add_faults(faults: argparse.ArgumentParser) -> None:
    kinds, form = ", ".join(KINDS), "NAME[:FIELD=VALUE,…][@SHARE]"
    faults.add_argument("--fault", action="append", default=[], metavar=form, help=kinds)
    faults.add_argument("--seed", type=int, default=0, help="same seed, same draws; default 0")
    faults.add_argument("--only", default="", metavar="PATH", help="leave other paths alone")
    faults.add_argument("--to", metavar="URL", help="a service that runs; else one is started")
    faults.add_argument("--port", type=_port, default=0, help="0, the default, takes a free one")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: use 0 to 65535")
    return int(text)


def _doctor() -> int:
    all_well = True
    for finding in examine():
        print(finding, flush=True)
        all_well &= finding.ok
    return 0 if all_well else 1


def _serve(port: int) -> int:
    settings = Settings.from_environment()
    if settings.endpoint:
        raise SettingsError(
            f"FOUNDRY_ENDPOINT says that a service runs at {settings.endpoint} already.",
            fix="Unset it to start one here.",
        )
    with Service(settings, port=port) as service:
        print(f"{service.model_id} at {service.url}\nCtrl-C ends it.", flush=True)
        try:
            service.wait()
        except KeyboardInterrupt:
            return 0
    print("The service has ended.", file=sys.stderr)
    return 1


def _faults(arguments: argparse.Namespace) -> int:
    plan = plan_from(arguments.fault, arguments.seed)
    with contextlib.ExitStack() as running:
        url = arguments.to or running.enter_context(Service()).url
        proxy = FaultProxy(
            url, plan, only=arguments.only, port=arguments.port, on_end=partial(print, flush=True)
        )
        # One write: the proxy's thread prints too, as soon as there are requests.
        print(f"{running.enter_context(proxy).url}\nCtrl-C ends it.\n", end="", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(60)
    return 0


def _exercises() -> int:
    if copies := copy_sheets():
        print(f"New in {copies[0].parent}: {', '.join(copy.name for copy in copies)}")
    return 0


def _progress() -> int:
    print(progress_text())
    return 0


def _reset(name: str) -> int:
    backup = reset(name)
    print(f"{name} is as it came. What was there is kept in {backup}")
    print("If the notebook is open in JupyterLab: File → Reload Notebook from Disk.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
