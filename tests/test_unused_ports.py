"""Ports that the tests start things on: one process never gets another's, nor one that is taken."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from unused_ports import unused_port, unused_ports


def test_another_process_gets_others() -> None:
    """Its block is its own, however often it asks."""
    code = "from unused_ports import *; print(*(unused_port() for _ in range(300)))"
    folder = Path(__file__).parent
    said = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    theirs = {int(word) for word in said.stdout.split()}
    assert len(theirs) > 100
    assert theirs.isdisjoint(unused_port() for _ in range(300))


def test_a_port_that_is_taken_is_passed_over() -> None:
    """Rows as well as single ones go around it."""
    first = unused_ports(5)[0]
    with socket.create_server(("127.0.0.1", first + 2)):
        rows = [unused_ports(5) for _ in range(80)]
        assert first + 2 not in {port for row in rows for port in row} | {unused_port() for _ in range(300)}
