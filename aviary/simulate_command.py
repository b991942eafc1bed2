"""The command `simulate`: registry files and a trace in, a table and a picture out. Starts nothing and asks nobody."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from aviary.errors import CommandError, UsageError
from aviary.settings import DeploySettings
from aviary.simulation.outcome import Outcome
from aviary.simulation.replica import Speed
from aviary.simulation.simulation import Conditions, Simulation
from aviary.simulation.table import table_of
from aviary.simulation.trace import Trace, read_traces
from aviary.simulation.variants import Variant, read_comparison, variants_of
from aviary.simulation.workload import Workload, synthetic_trace
from model_registry.schema import RegistryEntry

_EVENTS_AT_ONCE: Final = 50_000
"""Between two looks at Ctrl-C."""
_WORKLOAD_FLAGS: Final = (
    "requests_per_s", "hours", "swing", "bursts_per_hour", "burst_factor", "burst_s", "prompt_tokens", "output_tokens",
    "spread", "seed",
)  # fmt: skip
DEFAULT_REQUESTS_PER_S: Final = 1.0
DEFAULT_HOURS: Final = 24.0
DEFAULT_SEED: Final = 0


async def run(arguments: argparse.Namespace) -> int:
    """Simulate every model under every combination of settings, and print what came of it."""
    save_plot = _plotter() if arguments.plot is not None else None
    settings = DeploySettings.load(models=arguments.models, registry=arguments.registry)
    entries = settings.select(settings.read_registry())
    comparisons = [read_comparison(text) for text in arguments.compare]
    variants = [variant for entry in entries for variant in variants_of(entry, comparisons)]
    _check_measurable(variants)
    traces = _traces(arguments, entries)
    conditions = _conditions(arguments)
    results = [
        (variant.label, await _outcome(variant.entry, traces[variant.entry.model_id], conditions))
        for variant in variants
    ]
    print("\n".join(table_of(results, arguments.price_per_hour)))
    if save_plot is not None:
        try:
            save_plot(arguments.plot, results)
        except OSError as error:
            raise CommandError(f"{arguments.plot}: cannot be written: {error.strerror}") from None
    return 0


async def _outcome(entry: RegistryEntry, trace: Trace, conditions: Conditions) -> Outcome:
    simulation = Simulation(entry, trace, conditions)
    while not await asyncio.to_thread(simulation.advance, _EVENTS_AT_ONCE):
        pass
    return simulation.outcome


def _traces(arguments: argparse.Namespace, entries: Sequence[RegistryEntry]) -> Mapping[str, Trace]:
    model_ids = [entry.model_id for entry in entries]
    given = {flag: value for flag in _WORKLOAD_FLAGS if (value := getattr(arguments, flag)) is not None}
    if arguments.trace is not None:
        if given:
            flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in given)
            raise UsageError(f"{flags} describe a synthetic trace, and --trace is one already; give one or the other")
        return read_traces(arguments.trace, model_ids)
    if "bursts_per_hour" not in given and ("burst_factor" in given or "burst_s" in given):
        raise UsageError(
            "--burst-factor and --burst-s say what bursts are like, and there are none; add --bursts-per-hour"
        )
    seed = given.pop("seed", DEFAULT_SEED)
    workload = Workload(
        requests_per_s=given.pop("requests_per_s", DEFAULT_REQUESTS_PER_S),
        duration_s=given.pop("hours", DEFAULT_HOURS) * 3600,
        **given,
    )
    return {model_id: synthetic_trace(workload, f"{seed} {model_id}") for model_id in model_ids}


def _conditions(arguments: argparse.Namespace) -> Conditions:
    return Conditions(
        speed=Speed(
            step_s=arguments.step_ms / 1000,
            step_per_sequence_s=arguments.step_per_sequence_ms / 1000,
            prefill_tokens_per_s=arguments.prefill_tokens_per_s,
            cold_start_s=arguments.cold_start_s,
        ),
        request_timeout_s=arguments.request_timeout_s,
    )


def _check_measurable(variants: Sequence[Variant]) -> None:
    for variant in variants:
        autoscaling = variant.entry.deployment.autoscaling_config
        if autoscaling.target_kv_cache_usage is not None and variant.entry.model.generation.kv_cache_tokens is None:
            raise UsageError(
                f"{variant.entry.model_id}: target_kv_cache_usage cannot be simulated without the cache's size; set "
                "generation.kv_cache_tokens, or --compare kv_cache_tokens=N"
            )


def _plotter() -> Callable[[Path, Sequence[tuple[str, Outcome]]], None]:
    """Asked for first: nobody wants to hear after the simulation that it cannot be drawn."""
    try:
        from aviary.simulation.plot import save_plot
    except ModuleNotFoundError as error:
        raise UsageError(f"--plot needs {error.name}; install it with `pip install 'aviary[simulate]'`") from None
    return save_plot
