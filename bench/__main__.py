"""Entry point of `python -m bench`: all measurements, or the one that is named."""

from __future__ import annotations

import argparse

from bench import compiled, engine, llama, server, structured


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description="Measure Aviary on this machine.")
    parser.add_argument(
        "what", nargs="?", choices=["engine", "compiled", "llama", "server", "structured"], help="only this measurement"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison; medians are printed")
    arguments = parser.parse_args()
    if arguments.what in (None, "engine"):
        engine.measure(arguments.rounds)
    if arguments.what in (None, "compiled"):
        compiled.measure(arguments.rounds)
    if arguments.what in (None, "llama"):
        llama.measure(arguments.rounds)
    if arguments.what in (None, "server"):
        server.measure(arguments.rounds)
    if arguments.what in (None, "structured"):
        structured.measure(arguments.rounds)


if __name__ == "__main__":
    main()
