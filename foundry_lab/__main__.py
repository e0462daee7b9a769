"""``python -m foundry_lab doctor | serve``."""

import argparse
import contextlib
import io
import sys

from foundry_lab.doctor import examine
from foundry_lab.errors import FoundryLabError
from foundry_lab.service import Service


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
    arguments = parser.parse_args()
    try:
        return _doctor() if arguments.command == "doctor" else _serve(arguments.port)
    except FoundryLabError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


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
    with Service(port=port) as service:
        print(f"{service.model_id} at {service.url}\nCtrl-C ends it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            service.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
