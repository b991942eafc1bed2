"""`aviary gateway`: one more gateway in front of a cluster's pool, as one process or as several.

Light, for it becomes the supervisor where several are wanted; a gateway itself is `one_gateway`.
"""

from __future__ import annotations

import argparse

from aviary.errors import UsageError
from aviary.settings import load_gateway_settings
from aviary.supervisor import serve_together
from gateway.listener import BindError
from gateway.start_check import check_start
from gateway.store_file import StoreError


async def run(arguments: argparse.Namespace) -> int:
    """Serves until a signal; the exit status."""
    settings = load_gateway_settings(host=arguments.host, port=arguments.port, workers=arguments.workers)
    try:
        await check_start(settings)
        if settings.workers > 1:
            return await serve_together(
                settings, on_started=lambda url: print(f"{settings.workers} gateway processes on {url}", flush=True)
            )
        from aviary.one_gateway import serve_alone  # with Ray, which a supervisor does without

        return await serve_alone(settings, on_started=lambda url: print(f"gateway on {url}", flush=True))
    except (BindError, StoreError) as error:
        raise UsageError(str(error)) from None
