"""What is installed on a user's machine is locked: constraints.txt covers it all, agrees with it, and is used."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.architecture.sources import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GROUPS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
WRITE_ANEW = "run `make lock`"


def locked_versions() -> dict[str, list[tuple[Requirement, Version]]]:
    """By canonical name; several where the version depends on the platform."""
    found: dict[str, list[tuple[Requirement, Version]]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            [specifier] = requirement.specifier
            assert specifier.operator == "==", line
            found.setdefault(canonicalize_name(requirement.name), []).append((requirement, Version(specifier.version)))
    return found


LOCKED = locked_versions()


def locked_here(name: str) -> Version | None:
    """The version for this machine."""
    for requirement, version in LOCKED.get(canonicalize_name(name), []):
        if requirement.marker is None or requirement.marker.evaluate():
            return version
    return None


def installed(name: str) -> Distribution | None:
    """None for what an extra that is not installed would bring."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def needed(requirement: Requirement, seen: set[str]) -> Iterator[Distribution]:
    """The distribution that fulfils a requirement, and those that it needs in turn."""
    found = installed(requirement.name)
    if found is None or (key := f"{requirement.name}{sorted(requirement.extras)}") in seen:
        return
    seen.add(key)
    yield found
    for line in found.requires or ():
        inner = Requirement(line)
        extras = ("", *requirement.extras)
        if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
            yield from needed(inner, seen)


@pytest.mark.parametrize("group", GROUPS)
def test_the_lock_agrees_with_what_the_project_asks_for(group: str) -> None:
    for line in GROUPS[group]:
        requirement = Requirement(line)
        version = locked_here(requirement.name)
        assert version is not None, f"{line} is not in constraints.txt: {WRITE_ANEW}"
        assert requirement.specifier.contains(version), f"{line} is locked as {version}: {WRITE_ANEW}"


def test_the_lock_covers_all_that_is_installed_and_agrees_with_it() -> None:
    seen = set[str]()
    everything = [line for lines in GROUPS.values() for line in lines]
    found = {each.name: each for line in everything for each in needed(Requirement(line), seen)}
    assert len(found) > 100  # the walk went down
    missing = sorted(name for name in found if locked_here(name) is None)
    assert missing == [], WRITE_ANEW
    different = {
        name: (each.version, str(locked_here(name)))
        for name, each in found.items()
        if Version(each.version).public != str(locked_here(name))  # torch's CPU build has a local version
    }
    assert different == {}, f"(installed, locked): install again, or {WRITE_ANEW}"


@pytest.mark.parametrize("recipe", ["Makefile", "Dockerfile"])
def test_nothing_is_installed_past_the_lock(recipe: str) -> None:
    text = (ROOT / recipe).read_text().replace("\\\n", " ").replace("$(CONSTRAINED)", "--constraint constraints.txt")
    installs = re.findall(r"(?:pip|\$\(PIP\)) install (.*)", text)
    assert len(installs) >= 4
    for arguments in installs:
        pinned = re.search(r"--no-deps|==|\$\((?:NODE|UV)\)", arguments)
        assert pinned or "--constraint constraints.txt" in arguments, arguments
