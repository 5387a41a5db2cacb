"""`python -m api.openapi`: the OpenAPI document, without a running service."""

import json
import sys
from typing import Any

from api.app import create_app
from core.settings import Settings


def render(document: dict[str, Any]) -> str:
    """The document as text, stable from run to run."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render(create_app(Settings()).openapi()))
