"""How every `tilework` command speaks: results on stdout, errors on stderr, meaning in the exit status.

A command raises a `Refusal` and prints with `emit`; the outermost group turns whatever was raised
into `error: …` for people or `{"code", "message", "fix"}` for scripts, and into an `ExitCode`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from consensus.address import AddressError
from consensus.errors import Refusal
from wallet.errors import ExitCode, WalletError

__all__ = ["CliError", "Command", "ExitCode", "Group", "emit", "notice", "wants_json"]

HELP_NAMES = ["-h", "--help"]
DEBUG_VARIABLE = "TILEWORK_DEBUG"

_JSON_KEY = "tilework.json"

_EXIT_CODES = {
    "config": ExitCode.USAGE,
    "genesis": ExitCode.USAGE,
    "log": ExitCode.USAGE,
    "data-dir-unwritable": ExitCode.USAGE,
    "key-unusable": ExitCode.INTERNAL,
    "worker-key-unusable": ExitCode.INTERNAL,
    "storage": ExitCode.INTERNAL,
    "no-devnet": ExitCode.NOT_FOUND,
    "no-such-node": ExitCode.NOT_FOUND,
    "not-running": ExitCode.NETWORK,
    "no-answer": ExitCode.TIMEOUT,
    "not-ready": ExitCode.TIMEOUT,
    "not-registered": ExitCode.TIMEOUT,
    "node-failed": ExitCode.INTERNAL,
    "warm-up-failed": ExitCode.INTERNAL,
    "block-time-fixed": ExitCode.USAGE,
    "path-too-long": ExitCode.USAGE,
}
"""Of refusals that do not say with which status a command ends; the rest end with REJECTED."""


class CliError(WalletError):
    """A refusal by a command itself, rather than by the library below it."""


class Command(click.Command):
    """A command with `--json`. It prints through `emit`, and may return the `ExitCode` to leave with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings.setdefault("help_option_names", HELP_NAMES)
        self.params.append(
            click.Option(
                ["--json"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_remember_json,
                help="Print JSON, for scripts.",
            )
        )


class Group(click.Group):
    """A group of commands; as the outermost one, it turns exceptions into errors and exit statuses."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings.setdefault("help_option_names", HELP_NAMES)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without arguments, show the help: whoever types the bare name wants to know what there is."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        return super().parse_args(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run as a program: raises `SystemExit` with an `ExitCode`. Not standalone, do as click does."""
        arguments = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(arguments, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            status = super().main(arguments, prog_name, complete_var, standalone_mode=False, **extra)
        except Exception as error:
            refusal = _explain(error)
            _print_error(refusal, as_json=_asks_for_json(arguments))
            sys.exit(refusal.exit_code)
        sys.exit(status if isinstance(status, int) else ExitCode.OK)


def emit(result: object, text: str) -> None:
    """Print what a command found: `text`, or under `--json` a line with `result` (anything that msgspec encodes)."""
    if wants_json():
        click.echo(msgspec.json.encode(result).decode())
    else:
        click.echo(text)


def notice(text: str) -> None:
    """Tell a person something beside the result, on stderr; silent under `--json`."""
    if not wants_json():
        click.echo(text, err=True)


def wants_json() -> bool:
    """Whether the running command was given `--json`."""
    return bool(click.get_current_context().meta.get(_JSON_KEY, False))


def _remember_json(context: click.Context, _option: click.Parameter, value: bool) -> None:
    context.meta[_JSON_KEY] = value


def _asks_for_json(arguments: Sequence[str]) -> bool:
    # Seen from outside, since an error may come before click has parsed the options.
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def _explain(error: Exception) -> WalletError:
    """The refusal that an exception amounts to."""
    match error:
        case WalletError():
            return error
        case Refusal():
            return CliError(error.code, error.message, error.fix, _EXIT_CODES.get(error.code, ExitCode.REJECTED))
        case click.exceptions.Abort():
            return CliError("interrupted", "interrupted", "nothing more was done", ExitCode.INTERRUPTED)
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else "tilework"
            return CliError("usage", error.format_message(), f"see `{command} --help`", ExitCode.USAGE)
        case click.ClickException():
            fix = "check the path and who may read it"
            return CliError("usage", error.format_message(), fix, ExitCode.USAGE)
        case AddressError():
            fix = "copy the whole address again, from a source that you trust"
            return CliError("address-invalid", str(error), fix, ExitCode.USAGE)
        case TimeoutError():
            fix = "try again, or allow more time"
            return CliError("timeout", str(error) or "no answer in time", fix, ExitCode.TIMEOUT)
        case ConnectionError():
            fix = "check that the node runs and that its address is right"
            return CliError("network", str(error) or "the connection failed", fix, ExitCode.NETWORK)
        case OSError():
            fix = "check the path, its mode and the free space"
            return CliError("io", str(error), fix, ExitCode.INTERNAL)
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    fix = f"this is a bug: please report it with the output of the same command under {DEBUG_VARIABLE}=1"
    return CliError("internal", f"{type(error).__name__}: {error}", fix, ExitCode.INTERNAL)


def _print_error(error: WalletError, *, as_json: bool) -> None:
    if as_json:
        fields: dict[str, object] = {"code": error.code, "message": error.message, "fix": error.fix}
        if error.txids:
            fields |= {"txid": error.txids[-1], "txids": error.txids}
        click.echo(msgspec.json.encode(fields).decode(), err=True)
    else:
        click.echo(f"error: {error.message} ({error.code})\n  fix: {error.fix}", err=True)
