"""What the documents point at is there."""

import re
import subprocess
from pathlib import Path

import pytest

from cli.main import COMMANDS
from tests.architecture.sources import ROOT, shown

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"\btunewright ([a-z-]+)\b")


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_links_resolve(document: Path) -> None:
    broken = []
    for target in LINK.findall(CODE.sub("", document.read_text())):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        pointed = (document.parent / path).resolve() if path else document
        if not pointed.exists() or (anchor and pointed.suffix == ".md" and anchor not in _anchors(pointed)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_commands_exist(document: Path) -> None:
    named = {name for code in CODE.findall(document.read_text()) for name in COMMAND.findall(code)}
    assert named <= set(COMMANDS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_make_targets_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in {
        name for code in CODE.findall(document.read_text()) for name in re.findall(r"\bmake ([a-z][a-z-]*)", code)
    }:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_what_is_generated_is_not_kept() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    kept = [
        name
        for name in tracked.stdout.splitlines()
        if re.search(r"(^|/)(\.venv|var|__pycache__)/|\.(pt|bin|pyc)$", name)
    ]
    assert kept == []


def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-") for heading in headings}
