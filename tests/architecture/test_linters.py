"""The linters, each as a test, so that one run and one closing line say whether everything holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import FOLDERS, PACKAGES, ROOT

BIN = Path(sys.executable).parent
YAML_RULES = "{extends: default, rules: {line-length: {max: 120}}}"

LINTERS = {
    "ruff": ("ruff", "check", *FOLDERS),
    "format": ("ruff", "format", "--check", *FOLDERS),
    "types": ("mypy", *PACKAGES),
    "imports": ("lint-imports",),
    "dockerfile": ("hadolint", "Dockerfile"),
    "yaml": ("yamllint", "--strict", "-d", YAML_RULES, "docker-compose.yml", "ops/prometheus-rules.yml"),
}


@pytest.mark.parametrize("name", LINTERS)
def test_linter_is_content(name: str) -> None:
    command, *arguments = LINTERS[name]
    environment = {**os.environ, "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [str(BIN / command), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"\n{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("script", [".ci/run", "bench/gpu_kit/rehearse.sh"])
def test_shell_script_parses(script: str) -> None:
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)
    assert os.access(ROOT / script, os.X_OK)


def test_makefile_parses_and_documents_every_target() -> None:
    help_text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("clean", "demo", "help", "openapi", "serve", "setup", "test"):
        assert target in help_text


def test_scripts_and_styles_are_linted() -> None:
    [biome] = (ROOT / "node_modules" / "@biomejs").glob("cli-*/biome*")
    command = [str(biome), "ci", "--error-on-warnings", "--colors=off", "api/assets", "package.json", "biome.json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"\n{result.stdout}\n{result.stderr}"
