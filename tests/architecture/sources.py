"""The project's own files, as the checks of this folder read them."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "cli", "core", "migrations", "planner", "worker")
FOLDERS = (*PACKAGES, "bench", "examples", "tests")


def python_files(*folders: str) -> list[Path]:
    """Every Python file under the folders, by path."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(), filename=str(path))


def imports_of(path: Path) -> Iterator[tuple[str, str | None]]:
    """Every import anywhere in the file, as (module, name); the name is None for `import module`."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from ((node.module, alias.name) for alias in node.names)


def is_under(module: str, package: str) -> bool:
    """Whether the module is the package or lies inside it."""
    return module == package or module.startswith(f"{package}.")


def shown(path: Path) -> str:
    """The path as a message names it."""
    return path.relative_to(ROOT).as_posix()
