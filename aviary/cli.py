"""The command line: arguments in, exit status out. Composes gateway, workers and registry; each command has its file.

A command's module is imported only when it is run, so `--help` and the registry commands need neither Ray nor a web
framework. This is the edge where errors become lines on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final, cast

from aviary import ray_environment
from aviary.errors import INTERRUPTED_EXIT_CODE, CommandError, UsageError
from gateway.settings import MAX_PROCESSES
from model_registry.loader import RegistryError
from workers.pool.errors import PoolError

Command = Callable[[argparse.Namespace], Awaitable[int]]

LOG_LEVEL_VARIABLE: Final = "AVIARY_LOG_LEVEL"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
EPILOG: Final = """\
environment:
  AVIARY_REGISTRY    folder of YAML files, one per model (default: the shipped zoo)
  AVIARY_MODELS      comma-separated model ids (default: the zoo's small model, or all of AVIARY_REGISTRY)
  AVIARY_HOST, AVIARY_PORT                        where the gateway listens (default: 127.0.0.1, 8000)
  AVIARY_WORKERS     gateway processes that serve the address together (default: 1)
  AVIARY_LOAD_TIMEOUT_S, AVIARY_DRAIN_TIMEOUT_S   patience with loading and with open requests
  AVIARY_LOG_LEVEL   debug, info, warning or error (default: warning)
  RAY_ADDRESS        Ray cluster to join, host:port or auto; `serve` starts its own when absent

exit status:
  0  done, or ended by Ctrl-C or SIGTERM
  1  what was asked for failed: no model can be served, an invalid file, a cluster too small, the pool refused
  2  wrong arguments, settings, registry, port, store or cluster; nothing was started
  130  a command other than `serve` was interrupted by Ctrl-C before it was done
"""


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit status."""
    parsed = parser().parse_args(arguments)
    module, _, function = parsed.command.partition(":")
    try:
        _set_up_logging(os.environ.get(LOG_LEVEL_VARIABLE, "warning"))
        ray_environment.prepare(os.environ, Path.home())
        return asyncio.run(_awaited(cast("Command", getattr(import_module(module), function)), parsed))
    except RegistryError as error:
        return _complain(str(error), UsageError.exit_code)
    except CommandError as error:
        return _complain(str(error), error.exit_code)
    except PoolError as error:
        return _complain(str(error), CommandError.exit_code)
    except asyncio.CancelledError:
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT_CODE


def parser() -> argparse.ArgumentParser:
    """All commands and their flags; a flag overrides its environment variable."""
    root = argparse.ArgumentParser(
        prog="aviary",
        description="One OpenAI-compatible address in front of pools of open language models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: str, summary: str) -> argparse.ArgumentParser:
        one = commands.add_parser(
            name, help=summary, description=summary, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        one.set_defaults(command=command)
        return one

    serve = add("serve", "aviary.serve:run", "Start everything on this machine, or join RAY_ADDRESS, and serve.")
    _add_registry_flags(serve)
    _add_address_flags(serve)
    deploy = add("deploy", "aviary.cluster_commands:deploy", "Make a running cluster's pool what the registry says.")
    _add_registry_flags(deploy)
    waiting = deploy.add_mutually_exclusive_group()
    waiting.add_argument("--no-wait", action="store_true", help="return before the models are loaded")
    waiting.add_argument("--watch", action="store_true", help="go on, and deploy whatever changes in the folder")
    _add_address_flags(add("gateway", "aviary.gateway_command:run", "Run one more gateway for a cluster's pool."))
    add("status", "aviary.cluster_commands:status", "Show what is deployed on a cluster, and how it is.")
    add("shutdown", "aviary.cluster_commands:shutdown", "Remove every model from a cluster.")
    models = add("models", "aviary.registry_commands:models", "List the registry's models.")
    models.add_argument("--registry", type=Path, metavar="FOLDER", help="overrides AVIARY_REGISTRY")
    validate = add("validate", "aviary.registry_commands:validate", "Check registry files and name every problem.")
    validate.add_argument("paths", type=Path, nargs="+", metavar="FILE_OR_FOLDER")
    validate.add_argument(
        "--cluster",
        action="store_true",
        help="also ask the Ray cluster what it lacks for each model; changes nothing",
    )
    validate.add_argument("--address", metavar="HOST:PORT", help="the cluster to ask, not RAY_ADDRESS")
    simulate = add("simulate", "aviary.simulate_command:run", "Try autoscaling settings on a trace, in simulated time.")
    _add_registry_flags(simulate)
    _add_simulation_flags(simulate)
    add("schema", "aviary.registry_commands:schema", "Print the JSON schema of a registry file, for editors.")
    _add_supervised_gateway(commands.add_parser("gateway-process"))
    return root


def _set_up_logging(level: str) -> None:
    if level.lower() not in LOG_LEVELS:
        raise UsageError(f"{LOG_LEVEL_VARIABLE}={level}: is none of {', '.join(LOG_LEVELS)}; correct it or unset it")
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT)


def _add_registry_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--registry", type=Path, metavar="FOLDER", help="overrides AVIARY_REGISTRY")
    command.add_argument("--models", metavar="ID,ID…", help="overrides AVIARY_MODELS")


def _add_address_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", metavar="ADDRESS", help="overrides AVIARY_HOST")
    command.add_argument("--port", type=_port, metavar="PORT", help="overrides AVIARY_PORT; 0 takes any free one")
    command.add_argument("--workers", type=_num_processes, metavar="N", help="overrides AVIARY_WORKERS")


def _add_supervised_gateway(command: argparse.ArgumentParser) -> None:
    """What a supervisor runs, and nobody types: it has no line in the help."""
    command.set_defaults(command="aviary.one_gateway:run_supervised")
    command.add_argument("supervisor_pid", type=int)
    command.add_argument("life_fd", type=int)
    command.add_argument("listener_fds", type=int, nargs="+", help="its own, then those of the other processes")


def _add_simulation_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--compare", action="append", default=[], metavar="KEY=V1,V2,…", help="settings side by side; may be repeated"
    )
    command.add_argument("--price-per-hour", type=_positive, metavar="PRICE", help="of what one replica runs on")
    command.add_argument("--plot", type=Path, metavar="FILE.png", help="draw load and replicas over time")
    command.add_argument("--request-timeout-s", type=_positive, default=600.0, metavar="S", help="default: 600")

    trace = command.add_argument_group("the requests: a file, or a synthetic trace for each model")
    trace.add_argument(
        "--trace", type=Path, metavar="FILE.csv", help="with arrival_s, prompt_tokens, output_tokens and perhaps model"
    )
    trace.add_argument("--requests-per-s", type=_positive, metavar="N", help="mean without bursts; default: 1")
    trace.add_argument("--hours", type=_positive, metavar="N", help="default: 24")
    trace.add_argument("--swing", type=_share, metavar="0..1", help="of the day, up and down from the mean; default: 0")
    trace.add_argument("--bursts-per-hour", type=_positive, metavar="N", help="default: none")
    trace.add_argument("--burst-factor", type=_factor, metavar="N", help="the rate's in a burst; default: 5")
    trace.add_argument("--burst-s", type=_positive, metavar="S", help="default: 60")
    trace.add_argument("--prompt-tokens", type=_positive, metavar="N", help="mean; default: 500")
    trace.add_argument("--output-tokens", type=_positive, metavar="N", help="mean; default: 200")
    trace.add_argument("--spread", type=_not_negative, metavar="N", help="of lengths, 0 is none; default: 1")
    trace.add_argument("--seed", type=int, metavar="N", help="default: 0")

    speed = command.add_argument_group("one replica: measure it with `python -m bench`, or on a machine like it")
    speed.add_argument("--step-ms", type=_positive, default=25.0, metavar="MS", help="one decode step; default: 25")
    speed.add_argument(
        "--step-per-sequence-ms", type=_not_negative, default=0.3, metavar="MS", help="each further one; default: 0.3"
    )
    speed.add_argument("--prefill-tokens-per-s", type=_positive, default=8000.0, metavar="N", help="default: 8000")
    speed.add_argument(
        "--cold-start-s", type=_not_negative, default=120.0, metavar="S", help="from decision to service; default: 120"
    )


def _positive(text: str) -> float:
    if (value := _not_negative(text)) == 0:
        raise argparse.ArgumentTypeError("0 is out of range; give a number above 0")
    return value


def _factor(text: str) -> float:
    if (value := _not_negative(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is out of range; give a number above 1")
    return value


def _share(text: str) -> float:
    if (value := _not_negative(text)) > 1:
        raise argparse.ArgumentTypeError(f"{text} is out of range; give a number from 0 to 1")
    return value


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is out of range; give a number of 0 or more")
    return value


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port; give a number from 0 to 65535")
    return int(text)


def _num_processes(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PROCESSES:
        raise argparse.ArgumentTypeError(f"{text} is no number of processes; give one from 1 to {MAX_PROCESSES}")
    return int(text)


async def _awaited(command: Command, arguments: argparse.Namespace) -> int:
    return await command(arguments)


def _complain(message: str, exit_code: int) -> int:
    print(f"aviary: {message}", file=sys.stderr, flush=True)
    return exit_code
