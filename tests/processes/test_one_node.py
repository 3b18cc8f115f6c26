"""One real node process: its start, its refusals, its end."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

from devnet import layout
from tests.processes.harness import RealNode, is_running, rig, until


def refusal(node: RealNode) -> tuple[int, dict[str, str]]:
    """What starting it once more ends with: exit status and error."""
    done = subprocess.run(layout.command(*node.arguments, "--json"), capture_output=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stderr.splitlines()[-1])


def test_a_node_guards_its_directory_and_ports_stops_in_time_and_comes_back(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        node = made.node(units_per_block=3)
        node.start()
        node.wait_ready()
        until(lambda: node.height() >= 2, "two blocks")

        status, error = refusal(node)
        assert (status, error["code"]) == (3, "data-dir-in-use")
        assert "--data-dir" in error["fix"]

        other = made.node()
        for taken, option in (("rpc_port", "--rpc-port"), ("p2p_port", "--p2p-port")):
            free = getattr(other, taken)
            setattr(other, taken, getattr(node, taken))
            status, error = refusal(other)
            assert (status, error["code"]) == (3, "port-in-use")
            assert option in error["fix"]
            setattr(other, taken, free)

        started = time.monotonic()
        assert node.end(signal.SIGTERM) == 0
        assert time.monotonic() - started < 5
        assert "Traceback" not in node.log()

        node.idle_duty = 0.0
        node.start()
        node.wait_ready()
        assert node.height() >= 2
        assert node.end(signal.SIGINT) == 0


def test_a_node_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        node = made.node()
        node.start()
        node.wait_ready()
        assert node.process is not None
        assert node.process.stdin is not None
        node.process.stdin.close()  # as the system does when the starter dies
        assert node.process.wait(10) == 0
        assert not is_running(node.process.pid)
