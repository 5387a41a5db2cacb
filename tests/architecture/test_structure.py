"""Where things are: a file's size, name and imports tell what it is for."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import FOLDERS, PACKAGES, ROOT, imports_of, is_under, python_files, shown, tree_of

LONGEST_FILE = 500
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "gguf", "safetensors")
STATEMENTS = {"select", "insert", "update", "delete", "text", "union", "exists"}


def test_no_file_is_longer_than_one_can_keep_in_mind() -> None:
    pages = [path for folder in ("assets", "templates") for path in (ROOT / "api" / folder).rglob("*.*")]
    files = [*python_files(*FOLDERS), *pages]
    long = {shown(path): lines for path in files if (lines := _lines(path)) > LONGEST_FILE}
    assert long == {}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout")
def test_git_holds_nothing_that_it_should_ignore() -> None:
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == ""


def test_names_say_what_is_inside() -> None:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    assert [shown(path) for path in paths if path.stem in EMPTY_NAMES] == []


def test_only_the_training_child_imports_what_is_heavy() -> None:
    found = [
        f"{shown(path)}: {module}"
        for path in python_files(*PACKAGES)
        if not path.is_relative_to(ROOT / "worker" / "training")
        for module, _ in imports_of(path)
        if any(is_under(module, heavy) for heavy in HEAVY)
    ]
    assert found == []


def test_only_one_module_asks_the_nvidia_driver() -> None:
    asking = {shown(path) for path in python_files(*PACKAGES) for module, _ in imports_of(path) if module == "pynvml"}
    assert asking == {"planner/nvml.py"}


def test_sql_is_written_where_it_is_looked_for() -> None:
    found = [
        f"{shown(path)}: {module}.{name}"
        for path in python_files("api", "cli", "core", "worker")
        if path.name not in ("queries.py", "models.py") and not path.is_relative_to(ROOT / "core" / "db")
        for module, name in imports_of(path)
        if is_under(module, "sqlalchemy") and name in STATEMENTS
    ]
    assert found == []


def test_migrations_outlive_the_code_they_came_from() -> None:
    found = [
        f"{shown(path)}: {module}"
        for path in python_files("migrations/versions")
        for module, _ in imports_of(path)
        if module.partition(".")[0] not in ("sqlalchemy", "alembic")
    ]
    assert found == []


def test_services_do_not_commit() -> None:
    committing = [
        shown(path)
        for path in python_files("core", "api", "worker", "cli")
        if not path.is_relative_to(ROOT / "core" / "db")
        and re.search(r"\bsession\.(commit|rollback)\(", path.read_text())
    ]
    assert committing == []


@pytest.mark.parametrize("path", [path for path in python_files(*PACKAGES) if "__all__" in path.read_text()], ids=shown)
def test_all_is_true(path: Path) -> None:
    if path.is_relative_to(ROOT / "worker" / "training"):
        names = _defined_names(path)
    else:
        names = set(vars(importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))))
    declared = _declared_names(path)
    assert set(declared) <= names
    assert len(set(declared)) == len(declared)


def test_the_api_process_loads_nothing_heavy() -> None:
    script = "import sys, api.app; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) & {*HEAVY, "pynvml", "pandas"} == set()


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def _declared_names(path: Path) -> list[str]:
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    raise AssertionError(f"{shown(path)} mentions __all__ but does not assign it")


def _defined_names(path: Path) -> set[str]:
    names = {name or module for module, name in imports_of(path)}
    for node in tree_of(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names
