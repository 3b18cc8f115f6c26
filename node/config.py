"""What a node's operator decides, as one frozen value: defaults < TOML file < environment < flags.

The structs below are the only list of settings. A field `port` of the section `rpc` is `port` under `[rpc]` in the
file, `TILEWORK_RPC_PORT` in the environment and `--rpc-port` on the command line; a field outside the sections goes
without a prefix, and some flags are shorter. A wrong value is refused under the name of its source, never adjusted.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from consensus.errors import Refusal
from worker.duty import usual_duty
from worker.files import text_of
from worker.price import DEFAULT_MULTIPLE, PRICE_PATTERN, AskingPrice

ENVIRONMENT_PREFIX = "TILEWORK_"
CONFIG_VARIABLE = "TILEWORK_CONFIG"
MAX_FILE_BYTES = 1 << 20

Host = Annotated[str, Meta(min_length=1, max_length=253)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class ConfigError(Refusal):
    """A setting cannot be used; `fix` says what to do."""


class P2p(Struct, frozen=True, forbid_unknown_fields=True):
    """Peers"""

    host: Annotated[Host, Meta(description="Address to listen on for peers.")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port to listen on for peers; 0 lets the system choose.")] = 9545
    peers: Annotated[
        tuple[str, ...], Meta(description="Peers to stay connected to, as host:port.", extra={"flag": "--peer"})
    ] = ()


class Rpc(Struct, frozen=True, forbid_unknown_fields=True):
    """JSON-RPC"""

    host: Annotated[Host, Meta(description="Address to listen on for RPC. It has no passwords: keep it private.")] = (
        "127.0.0.1"
    )
    port: Annotated[Port, Meta(description="Port of RPC, /health, /ready, /metrics; 0 lets the system choose.")] = 8545
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="Host names that requests may carry beyond localhost and IP addresses.",
            extra={"flag": "--rpc-allowed-host"},
        ),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(
            description="Origins of web pages that may call, like https://explorer.example.",
            extra={"flag": "--rpc-cors-origin"},
        ),
    ] = ()


class Mining(Struct, frozen=True, forbid_unknown_fields=True):
    """Mining"""

    enabled: Annotated[
        bool,
        Meta(
            description="Mine: packets dealt to the worker key first, idle units otherwise.", extra={"flag": "--mine"}
        ),
    ] = False
    threads: Annotated[
        int, Meta(ge=1, le=256, description="Threads that multiply.", extra={"flag": "--mine-threads"})
    ] = 1
    idle_duty: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(
            description="Share of the time spent on idle units, 0 for packets only; those run at full speed. Default: "
            "0.001 on a devnet, else 1.",
            extra={"flag": "--idle-duty"},
        ),
    ] = None
    worker_key: Annotated[
        Path | None,
        Meta(
            description="The worker's key, made if it is missing. Default: worker.key in the data directory.",
            extra={"flag": "--worker-key"},
        ),
    ] = None
    price: Annotated[
        Annotated[str, Meta(pattern=PRICE_PATTERN)] | None,
        Meta(
            description="Least price that a registered worker asks: a multiple of what idle mining earns, like 1.0x, "
            "or grains per 2⁴⁰ of weight; declared anew when it is off by a quarter. Default: 1.0x on mainnet, else "
            "the price that was registered.",
            extra={"flag": "--price"},
        ),
    ] = None
    payout: Annotated[
        Annotated[str, Meta(max_length=90)] | None,
        Meta(
            description="Address that the worker's earnings are sent to, unattended; 1 TILE stays, for its own fees.",
            extra={"flag": "--payout"},
        ),
    ] = None
    payout_above: Annotated[
        int,
        Meta(
            ge=1,
            le=10**9,
            description="How many TILE the worker's account must hold more than, for --payout to send them. Let it be "
            "more than the bond that you want to register.",
            extra={"flag": "--payout-above"},
        ),
    ] = 100


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    """Log"""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severity that is written.")
    ] = "info"
    format: Annotated[Literal["text", "json"], Meta(description="Lines for people, or one JSON object a line.")] = (
        "text"
    )
    file: Annotated[Path | None, Meta(description="Write here (rotated at 16 MiB, 3 kept) instead of stderr.")] = None


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """Memory"""

    tensor_cache_mib: Annotated[
        int, Meta(ge=1, le=65536, description="Tensors kept in memory.", extra={"flag": "--tensor-cache-mib"})
    ] = 128
    mempool_mib: Annotated[
        int, Meta(ge=1, le=4096, description="Transactions that wait for a block.", extra={"flag": "--mempool-mib"})
    ] = 64


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """Node"""

    network: Annotated[Literal["devnet", "regtest", "mainnet"], Meta(description="Which network to take part in.")] = (
        "devnet"
    )
    data_dir: Annotated[
        Path | None, Meta(description="Directory of this node alone. Default: ~/.tilework/<network>.")
    ] = None
    genesis: Annotated[
        Path | None,
        Meta(description="Rules of a devnet, as JSON. Default: genesis.json in the data directory, if it is there."),
    ] = None
    threads: Annotated[int, Meta(ge=1, le=256, description="Threads that check blocks, transactions and tensors.")] = 2
    allow_deep_reorg: Annotated[
        bool,
        Meta(description="Follow the most work even where that undoes more blocks than the network's rules advise."),
    ] = False
    p2p: P2p = P2p()
    rpc: Rpc = Rpc()
    mining: Mining = Mining()
    log: Log = Log()
    limits: Limits = Limits()

    @property
    def directory(self) -> Path:
        """The data directory."""
        return self.data_dir or Path("~/.tilework").expanduser() / self.network

    @property
    def genesis_file(self) -> Path | None:
        """The file with the network's rules; None where they are built in or missing."""
        kept = self.directory / "genesis.json"
        return self.genesis or (kept if kept.exists() else None)

    @property
    def worker_key_file(self) -> Path:
        """Where the worker's key is."""
        return self.mining.worker_key or self.directory / "worker.key"

    @property
    def idle_duty(self) -> float:
        """Share of the time for idle units."""
        given = self.mining.idle_duty
        return usual_duty(self.network) if given is None else given

    @property
    def asking_price(self) -> AskingPrice | None:
        """What the worker asks; None leaves its declaration as it is."""
        text = self.mining.price or (DEFAULT_MULTIPLE if self.network == "mainnet" else None)
        return None if text is None else AskingPrice.parse(text)


@dataclass(frozen=True)
class Setting:
    """One field of `Config`, by its names in each source. `section` is empty for those outside the sections."""

    section: str
    name: str
    kind: Any
    default: Any
    description: str
    flag: str
    """Name on the command line."""
    title: str
    """Of its section, for people."""

    @property
    def bare(self) -> Any:
        """The type without its bounds, and without None where that is the default."""
        kind = get_args(self.kind)[0]
        if get_origin(kind) is UnionType or get_origin(kind) is Union:
            (kind,) = (one for one in get_args(kind) if one is not NoneType)
        return get_args(kind)[0] if get_origin(kind) is Annotated else kind

    @property
    def key(self) -> str:
        """Name as a Python argument: rpc_port."""
        return f"{self.section}_{self.name}" if self.section else self.name

    @property
    def variable(self) -> str:
        """Name in the environment."""
        return ENVIRONMENT_PREFIX + self.key.upper()

    @property
    def place(self) -> str:
        """Name in the file."""
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def is_many(self) -> bool:
        """Whether it holds several values: a comma-separated list in the environment, a repeated flag."""
        return get_origin(self.bare) is tuple

    @property
    def is_path(self) -> bool:
        """Whether it names a file or a directory."""
        return self.bare is Path


def _settings(struct: type[Struct], section: str = "") -> Iterator[Setting]:
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        kind = hints[field.name]
        if isinstance(kind, type) and issubclass(kind, Struct):
            yield from _settings(kind, field.name)
            continue
        note = next(note for note in get_args(kind)[1:] if isinstance(note, Meta) and note.description)
        default_flag = "--" + f"{section}_{field.name}".lstrip("_").replace("_", "-")
        flag = (note.extra or {}).get("flag", default_flag)
        yield Setting(section, field.name, kind, field.default, note.description or "", flag, struct.__doc__ or "")


SETTINGS = tuple(_settings(Config))
_BY_PLACE = {setting.place: setting for setting in SETTINGS}
_SECTIONS = frozenset(setting.section for setting in SETTINGS if setting.section)


def load(flags: Mapping[str, object], environment: Mapping[str, str], file: Path | None = None) -> Config:
    """The configuration from all sources.

    Args:
        flags: `Setting.key` → value, of those that were given.
        environment: variables; those of other programs are passed over.
        file: TOML; None takes TILEWORK_CONFIG from the environment, and if that is not set there is no file.
    Raises:
        ConfigError: a source cannot be read, or holds what does not fit; the message names it.
    """
    if file is None and environment.get(CONFIG_VARIABLE):
        file = Path(environment[CONFIG_VARIABLE])
    values = _from_file(file) if file is not None else {}
    for setting in SETTINGS:
        text = environment.get(setting.variable, "")
        if text:
            raw = [part.strip() for part in text.split(",") if part.strip()] if setting.is_many else text
            values[setting.place] = _convert(setting, raw, setting.variable, strict=False)
        if setting.key in flags:
            values[setting.place] = _convert(setting, flags[setting.key], setting.flag, strict=False)
    tree: dict[str, Any] = {section: {} for section in _SECTIONS}
    for place, value in values.items():
        setting = _BY_PLACE[place]
        (tree[setting.section] if setting.section else tree)[setting.name] = value
    return msgspec.convert(tree, Config, dec_hook=_decode_path)


def _from_file(file: Path) -> dict[str, Any]:
    """Place → value."""
    try:
        with file.open("rb") as source:
            data = source.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        fix = "check the path, or make a file with `tilework node init-config`"
        raise ConfigError("config", f"cannot read the configuration {file}: {error.strerror}", fix) from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError("config", f"{file} is larger than {MAX_FILE_BYTES} bytes", "check that it is the right file")
    try:
        document = tomllib.loads(text_of(data))
    except (ValueError, RecursionError) as error:  # an integer of many thousand digits is a ValueError, too
        raise ConfigError("config", f"{file} is not TOML: {error}", "correct the line that is named") from None
    values: dict[str, Any] = {}
    for name, value in document.items():
        rows = value.items() if name in _SECTIONS and isinstance(value, dict) else [(None, value)]
        for inner, raw in rows:
            place = name if inner is None else f"{name}.{inner}"
            setting = _BY_PLACE.get(place)
            if setting is None:
                near = difflib.get_close_matches(place, _BY_PLACE, n=1)
                hint = f"did you mean `{near[0]}`?" if near else "`tilework node init-config` shows every setting"
                raise ConfigError("config", f"{file}: there is no setting `{place}`", hint)
            value = _convert(setting, raw, f"{file}: {place}", strict=True)
            # A path in a file is relative to that file, wherever the node is started.
            values[place] = file.parent / value if setting.is_path else value
    return values


def _convert(setting: Setting, raw: object, source: str, *, strict: bool) -> Any:
    try:
        value = msgspec.convert(raw, setting.kind, strict=strict, dec_hook=_decode_path)
    except ValueError as error:
        why = str(error).replace("`", "")
        raise ConfigError("config", f"{source} = {_shown(raw)} does not fit: {why}", setting.description) from None
    return value


def _shown(raw: object) -> str:
    try:
        return f"{raw!r:.80}"
    except ValueError:  # Python writes no integer of many thousand digits
        return "a very large integer"


def _decode_path(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str | Path) or not str(value):
        raise ValueError("Expected a path")
    if "\0" in str(value):
        raise ValueError("A path holds no zero byte")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # `~` and the name of nobody
        raise ValueError(str(error)) from None


def template() -> str:
    """A configuration file with every setting at its default, commented out."""
    lines = ["# Settings of a Tilework node. Each is shown with its default; the environment and flags go first."]
    section = None
    for setting in SETTINGS:
        if setting.section != section and setting.section:
            lines += ["", f"[{setting.section}]"]
        section = setting.section
        default = "" if setting.default is None else msgspec.json.encode(setting.default).decode()
        lines += ["", f"# {setting.description} ({setting.variable}, {setting.flag})"]
        lines += [f"#{setting.name} = {default or '…'}"]
    return "\n".join(lines) + "\n"
