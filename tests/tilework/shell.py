"""A person at a shell: runs real commands, reads what they say, and does it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.wallet.network import ALICE
from wallet.accounts.keys import SigningKey
from wallet.accounts.keystore import KdfParams, Keystore

LIGHT = KdfParams(memory_kib=8, iterations=1, lanes=1)
PASSWORD = "correct horse"


class Shell:
    """A person at a shell, with an account: runs commands, and follows what they say."""

    def __init__(self, home: Path, url: str, key: SigningKey = ALICE) -> None:
        self.home = home
        Keystore(home / "ks").create("alice", key, PASSWORD, "devnet", kdf_params=LIGHT)
        (home / "password").write_text(PASSWORD)
        self.url = url
        self.environment = os.environ | {
            "TILEWORK_WALLET_DIR": str(home / "ks"),
            "TILEWORK_PASSWORD_FILE": str(home / "password"),
        }

    def start(
        self,
        *arguments: object,
        url: str | None = None,
        die_at: str = "",
        pause_at: str = "",
        patience_s: float = 1.5,
    ) -> subprocess.Popen[str]:
        """Start `tilework`. Where the code comes to `die_at` it is killed, at `pause_at` it says "paused" and waits for
        a line: "method before|after -" or, of calls to a node, "call before|after RPC-method"."""
        settings = {"DIE_AT": die_at, "PAUSE_AT": pause_at, "PATIENCE_S": str(patience_s), "PYTHONPATH": os.getcwd()}
        return subprocess.Popen(
            [sys.executable, "-c", _DRIVER, *map(str, arguments)],
            stdin=subprocess.PIPE if pause_at else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.home,
            env=self.environment | settings | {"TILEWORK_RPC_URL": url or self.url},
        )

    def run(self, *arguments: object, **options: Any) -> tuple[int, str, str]:
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=100)
        return process.returncode, out, err

    def ok(self, *arguments: object, **options: Any) -> dict[str, Any]:
        status, out, err = self.run(*arguments, "--json", **options)
        assert (status, err) == (0, ""), (status, out, err)
        answer: dict[str, Any] = json.loads(out)
        return answer

    def refused(self, *arguments: object, **options: Any) -> tuple[int, dict[str, Any]]:
        status, out, err = self.run(*arguments, "--json", **options)
        assert status != 0, (out, err)
        assert out == ""
        error: dict[str, Any] = json.loads(err)
        return status, error

    def follow(self, advice: str) -> dict[str, Any]:
        """Carry out the command that an error's advice names first."""
        command = advice[advice.index("tilework ") :].partition("; ")[0]
        return self.ok(*shlex.split(command)[1:])

    def waiting(self) -> list[dict[str, Any]]:
        return list(self.ok("wallet", "history")["waiting"])

    def wait_paid(self, txid: str) -> None:
        """As somebody who looks at the history until the payment is there."""
        deadline = time.monotonic() + 30
        while txid not in [m["reference"] for m in self.ok("wallet", "history")["movements"]]:
            assert time.monotonic() < deadline, self.waiting()
        assert txid not in [one["txid"] for one in self.waiting()]


_DRIVER = """
import asyncio, os, signal, sys
from wallet.client.gateway import Gateway
# Tests cannot wait as long as people do.
patience = float(os.environ["PATIENCE_S"])
Gateway.__init__.__kwdefaults__.update(patience_seconds=patience, timeout_seconds=min(patience, 5.0) / 1.5)
from wallet.client.client import Client
Client.__init__.__kwdefaults__.update(patience_seconds=patience)

def act():
    if os.environ["DIE_AT"]:
        os.kill(os.getpid(), signal.SIGKILL)
    print("paused", file=sys.stderr, flush=True)
    sys.stdin.readline()

step = os.environ["DIE_AT"] or os.environ["PAUSE_AT"]
if step:
    place, when, method = step.split()
    from wallet.accounts.journal import Journal
    from wallet.client.gateway import Heads
    from wallet.client.purse import Purse
    from wallet.client.rpc import RpcClient
    owner = {"note": Journal, "turn": Journal, "prepare": Purse, "call": RpcClient, "wait": Heads}[place]
    true, acted = getattr(owner, place), []
    def concerns(now, arguments):
        is_due = now == when and not acted and (method == "-" or arguments[1] == method)
        acted.extend([True] * is_due)
        return is_due
    if asyncio.iscoroutinefunction(true):
        async def changed(*arguments, **options):
            if concerns("before", arguments):
                act()
            result = await true(*arguments, **options)
            if concerns("after", arguments):
                act()
            return result
    else:
        def changed(*arguments, **options):
            if concerns("before", arguments):
                act()
            result = true(*arguments, **options)
            if concerns("after", arguments):
                act()
            return result
    setattr(owner, place, changed)

from tilework.main import main
main(sys.argv[1:])
"""
"""`tilework`, but impatient, and with a place in the code where it dies or pauses."""
