"""No network is needed after the install, and no test reaches for it."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Enter a network namespace of one's own, in which only the loopback interface exists, bring that
# up (ioctl SIOCSIFFLAGS, netdevice(7)), make sure that the world is out of reach, then run.
ISOLATED = """
import ctypes, errno, fcntl, os, socket, struct, sys
NEWUSER, NEWNET, SIOCSIFFLAGS, IFF_UP = 0x10000000, 0x40000000, 0x8914, 1
if ctypes.CDLL(None).unshare(NEWNET if os.geteuid() == 0 else NEWNET | NEWUSER):
    sys.exit(77)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
with socket.socket() as probe:
    assert probe.connect_ex(("192.0.2.1", 443)) == errno.ENETUNREACH
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
@pytest.mark.parametrize(
    "command",
    [["-m", "foundry_lab", "doctor"], ["-m", "pytest", "-q", "notebooks/00_welcome.ipynb"]],
    ids=["doctor", "lesson 00"],
)
def test_it_works_where_no_network_exists(command: list[str]) -> None:
    """Runtime, model, client, kernel and lesson need nothing but the loopback interface."""
    run = subprocess.run(
        [sys.executable, "-c", ISOLATED, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == 77:
        pytest.skip("this machine allows no network namespaces")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("host", ["192.0.2.1", "example.invalid"])
def test_a_test_that_reaches_for_the_network_fails(host: str) -> None:
    """The guard in conftest.py refuses addresses and names alike, before anything is sent."""
    with pytest.raises(PermissionError, match="reached for the network"):
        socket.create_connection((host, 443), timeout=1)
