"""Settings: which source wins, and what each refuses under its own name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from node.config import CONFIG_VARIABLE, SETTINGS, Config, ConfigError, load, template


def refusal(
    flags: dict[str, object] | None = None, environment: dict[str, str] | None = None, file: Path | None = None
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(flags or {}, environment or {}, file)
    assert caught.value.fix
    return caught.value.message


def written(directory: Path, text: str) -> Path:
    path = directory / "node.toml"
    path.write_text(text)
    return path


def test_nothing_given_is_the_defaults() -> None:
    assert load({}, {}) == Config()
    assert (Config().rpc.host, Config().p2p.host, Config().mining.enabled) == ("127.0.0.1", "127.0.0.1", False)
    assert load({}, {"TILEWORK_WALLET_DIR": "/x", "TILEWORK_RPC_PORT": "", "PATH": "/bin"}) == Config()


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, 'network = "regtest"\n[rpc]\nport = 1\nhost = "::1"\n[p2p]\nport = 1\n')
    environment = {"TILEWORK_RPC_PORT": "2", "TILEWORK_P2P_PORT": "2"}
    config = load({"rpc_port": "3"}, environment, file)
    assert (config.rpc.port, config.p2p.port, config.rpc.host, config.network) == (3, 2, "::1", "regtest")
    assert load({}, {CONFIG_VARIABLE: str(file)}).rpc.port == 1


def test_every_setting_can_come_from_every_source(tmp_path: Path) -> None:
    examples = {
        "network": "mainnet", "data_dir": "/d", "genesis": "/g", "threads": "3", "allow_deep_reorg": "true",
        "p2p_host": "h", "p2p_port": "4",
        "p2p_peers": "a:1,b:2", "rpc_host": "h", "rpc_port": "5", "rpc_allowed_hosts": "x,y",
        "rpc_cors_origins": "https://a", "mining_enabled": "true", "mining_threads": "2", "mining_idle_duty": "0.25",
        "mining_worker_key": "/k", "mining_price": "1.5x", "mining_payout": "tdev1x", "mining_payout_above": "9",
        "log_level": "debug", "log_format": "json", "log_file": "/l",
        "limits_tensor_cache_mib": "7", "limits_mempool_mib": "8",
    }  # fmt: skip
    assert set(examples) == {setting.key for setting in SETTINGS}
    by_environment = load({}, {setting.variable: examples[setting.key] for setting in SETTINGS})
    flags = {s.key: tuple(examples[s.key].split(",")) if s.is_many else examples[s.key] for s in SETTINGS}
    lines = []
    for setting in SETTINGS:
        value = examples[setting.key]
        plain = re.fullmatch(r"true|\d+(\.\d+)?", value)
        shown = str(value.split(",")) if setting.is_many else value if plain else f'"{value}"'
        lines.append(f"{setting.place} = {shown}")
    by_file = load({}, {}, written(tmp_path, "\n".join(lines)))
    assert by_environment == load(flags, {}) == by_file
    assert by_file.p2p.peers == ("a:1", "b:2")
    assert by_file.mining.idle_duty == 0.25


def test_paths_in_a_file_are_meant_from_there(tmp_path: Path) -> None:
    config = load({"genesis": "g.json"}, {}, written(tmp_path, 'data_dir = "data"\n[log]\nfile = "~/x.log"\n'))
    assert config.data_dir == tmp_path / "data"
    assert config.genesis == Path("g.json")
    assert config.log.file == Path.home() / "x.log"


def test_derived_places(tmp_path: Path) -> None:
    assert load({"network": "regtest"}, {}).directory == Path.home() / ".tilework" / "regtest"
    config = load({"data_dir": str(tmp_path)}, {})
    assert (config.genesis_file, config.worker_key_file) == (None, tmp_path / "worker.key")
    (tmp_path / "genesis.json").write_text("{}")
    assert config.genesis_file == tmp_path / "genesis.json"


def test_a_wrong_value_is_refused_under_the_name_of_its_source(tmp_path: Path) -> None:
    assert "--rpc-port = '99999'" in refusal({"rpc_port": "99999"})
    assert "--idle-duty" in refusal({"mining_idle_duty": "2"})
    assert "TILEWORK_RPC_PORT = 'x'" in refusal(environment={"TILEWORK_RPC_PORT": "x"})
    assert "TILEWORK_NETWORK" in refusal(environment={"TILEWORK_NETWORK": "testnet"})
    file = written(tmp_path, '[rpc]\nport = "8545"')
    assert f"{file}: rpc.port" in refusal(file=file)
    assert "1.5" in refusal(file=written(tmp_path, "[mining]\nidle_duty = 1.5"))


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    assert "cannot read" in refusal(file=tmp_path / "none.toml")
    assert "not TOML" in refusal(file=written(tmp_path, "rpc = ["))
    unknown = written(tmp_path, "[rpc]\nprot = 1")
    with pytest.raises(ConfigError) as caught:
        load({}, {}, unknown)
    assert "`rpc.prot`" in caught.value.message
    assert "`rpc.port`" in caught.value.fix
    assert "`rpc`" in refusal(file=written(tmp_path, "rpc = 1"))
    assert "no setting `speed`" in refusal(file=written(tmp_path, "speed = 1"))
    big = tmp_path / "big.toml"
    big.write_bytes(b"#" * (2 << 20))
    assert "larger" in refusal(file=big)


@pytest.mark.parametrize(
    "text",
    [
        "[rpc]\nport = " + "9" * 5000,
        "[rpc]\nport = 0x" + "f" * 5000,
        "port = " + "[" * 100_000,
        'data_dir = "~nobody-of-this-name/x"',
        'data_dir = "a\\u0000b"',
    ],
    ids=["digits", "hexadecimal digits", "nested", "nobody's home", "zero byte"],
)
def test_odd_values_in_a_file_are_refused_like_others(tmp_path: Path, text: str) -> None:
    assert len(refusal(file=written(tmp_path, text))) < 1000


def test_the_template_shows_every_setting_and_changes_nothing(tmp_path: Path) -> None:
    text = template()
    assert tomllib.loads(text) == {"p2p": {}, "rpc": {}, "mining": {}, "log": {}, "limits": {}}
    assert load({}, {}, written(tmp_path, text)) == Config()
    for setting in SETTINGS:
        assert setting.variable in text
        assert setting.flag in text
    filled = re.sub(r"(?m)^#(?=[a-z_]+ = [^…]*$)", "", text)
    assert load({}, {}, written(tmp_path, filled)) == Config()
