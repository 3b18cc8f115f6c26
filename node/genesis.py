"""The rules of a network as JSON: what `chain_params` answers, and what `--genesis` reads.

Bytes are lower-case hexadecimal and addresses bech32m, so that a person can read the file. The two directions are
inverse to each other, and whoever founds a chain from the file gets the same genesis hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from api.rules import ParamsView
from consensus import params
from consensus.errors import Refusal
from consensus.params import ChainParams
from worker.files import text_of

MAX_FILE_BYTES = 1 << 20

REGTEST_GENESIS_TIME_MS = 1_700_000_000_000
"""Regtest without a file has this birthday: long ago, so that its target stays at its easiest."""


class GenesisError(Refusal):
    """The network cannot be determined; `fix` says what to do."""


_FIX = "take the file from the network's founder, or from `chain_params` of one of its nodes"


def load(path: Path) -> ChainParams:
    """The rules in a genesis file. Raises `GenesisError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise GenesisError("genesis", f"cannot read the genesis file {path}: {error.strerror}", _FIX) from None
    if len(data) > MAX_FILE_BYTES:
        raise GenesisError("genesis", f"{path} is larger than {MAX_FILE_BYTES} bytes", _FIX)
    try:
        text = text_of(data)
        view = msgspec.json.decode(text, type=ParamsView)
        # A field that is passed over would be a rule that this node does not follow.
        for name in _unknown(msgspec.json.decode(text), msgspec.json.decode(msgspec.json.encode(view))):
            raise msgspec.ValidationError(f"it has an unknown field `{name[:80]}`")
        return view.params()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise GenesisError("genesis", f"{path} is no genesis file: {error}", _FIX) from None
    except ValueError as error:
        raise GenesisError("genesis", f"{path}: {error}", _FIX) from None


def _unknown(given: Any, known: Any) -> Iterator[str]:
    """The names in decoded JSON that the struct which was made of it lacks."""
    if isinstance(given, dict):
        for name, value in given.items():
            if name in known:
                yield from _unknown(value, known[name])
            else:
                yield name
    elif isinstance(given, list):
        for value, kept in zip(given, known, strict=True):
            yield from _unknown(value, kept)


def dump(rules: ChainParams) -> bytes:
    """The content of a genesis file."""
    return msgspec.json.format(msgspec.json.encode(ParamsView.of(rules)), indent=2) + b"\n"


def rules_of(network: str, file: Path | None) -> ChainParams:
    """The rules of `network`: built in for mainnet and (without a file) regtest, else those in the genesis `file`.

    Raises:
        GenesisError: no file where one is needed, one too many, or one of another network.
    """
    if network == "mainnet":
        if file is not None:
            raise GenesisError(
                "genesis", "mainnet's rules are built in", "leave out --genesis, or choose another --network"
            )
        return params.mainnet()
    if file is None:
        if network == "regtest":
            return params.regtest(REGTEST_GENESIS_TIME_MS)
        fix = "start a whole network with `tilework devnet up`, or join one: --genesis FILE"
        raise GenesisError("genesis", f"every {network} is a network of its own, and none is named", fix)
    rules = load(file)
    if rules.network != network:
        raise GenesisError(
            "genesis", f"{file} describes {rules.network}, not {network}", f"choose --network {rules.network}"
        )
    return rules
