"""The gateway's OpenAPI document, and its copy in docs/: `python -m tests.support.openapi_document` rewrites that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.support.scripted_pool import StaticPool, connect_to, pool_view

COPY = Path(__file__).parents[2] / "docs" / "openapi.json"


def document() -> dict[str, Any]:
    return create_app(GatewaySettings(), StaticPool(pool_view()), connect_to({})).openapi()


def as_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    COPY.write_text(as_text(document()), encoding="utf-8")
