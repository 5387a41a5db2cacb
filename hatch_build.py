"""Refuses to build a wheel without the dashboard's scripts and styles, which git does not hold."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class AssetsHook(BuildHookInterface):
    """Looks before anything is packed. An editable install may come first: its files are built in place."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (hatchling's signature)
        """Raise FileNotFoundError where the bundle is missing."""
        bundle = Path(self.root) / "api" / "static" / "app.js"
        if version != "editable" and not bundle.is_file():
            raise FileNotFoundError(f"{bundle} is missing. Run `make assets` first: a wheel ships the dashboard.")
