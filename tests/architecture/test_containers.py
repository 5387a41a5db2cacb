"""The compose file starts processes that exist, waits for what it needs, and has no secret of its own."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from cli.main import COMMANDS, build
from core.fleet.service import DRAINED_EXIT_CODE
from core.settings import Settings
from tests.architecture.sources import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
UNITS = sorted((ROOT / "ops" / "systemd").glob("*.service"))
SECRET_NAMES = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|_AUTH$")


def test_there_is_a_service_for_every_duty() -> None:
    assert set(SERVICES) == {"postgres", "redis", "migrate", "api", "worker-cpu", "worker-gpu", "sweep"}
    assert set(OURS) == set(SERVICES) - {"postgres", "redis"}


@pytest.mark.parametrize("name", OURS)
def test_command_is_one_of_ours(name: str) -> None:
    command, *options = SERVICES[name]["command"]
    assert command in COMMANDS
    declared = typer.main.get_command(build([command])).commands[command]
    known = {option for parameter in declared.params for option in parameter.opts}
    assert {option for option in options if option.startswith("--")} <= known


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"migrate"}))
def test_service_has_a_health_check(name: str) -> None:
    test = SERVICES[name]["healthcheck"]["test"]
    assert test[0] == "CMD"
    if test[1] == "tunewright":
        declared = typer.main.get_command(build([test[2]])).commands[test[2]]
        assert set(test[3:]) <= {option for parameter in declared.params for option in parameter.opts}


@pytest.mark.parametrize("name", sorted(set(OURS) - {"migrate"}))
def test_service_is_started_again_and_keeps_its_name(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert SERVICES[name]["hostname"] == name


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        there = unit.read_text().replace("/opt/tunewright/bin/tunewright", "/bin/true")
        (tmp_path / unit.name).write_text(there)
        command = ["systemd-analyze", "verify", str(tmp_path / unit.name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), unit.name


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_unit_runs_a_command_of_ours_and_is_started_again(unit: Path) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # theirs lowers names
    parser.read_string(unit.read_text())
    service = parser["Service"]
    program, command, *options = service["ExecStart"].split()
    assert program.endswith("/bin/tunewright")
    declared = typer.main.get_command(build([command])).commands[command]
    known = {option for parameter in declared.params for option in parameter.opts}
    assert {option for option in options if option.startswith("--")} <= known
    assert service["Restart"] == "always"
    assert service["KillMode"] == "mixed", "a fork server that is sent a SIGTERM takes its training child with it"
    if "--device" in options:
        assert service["RestartPreventExitStatus"] == str(DRAINED_EXIT_CODE)


def test_secrets_come_from_the_environment_and_have_no_default() -> None:
    found = []
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if SECRET_NAMES.search(variable) or "://" in str(value):
                required = re.findall(r"\$\{\w*(?:PASSWORD|SECRET)\w*:\?[^}]+\}", str(value))
                passed_on = value is None
                has_user_part = "@" in str(value)
                if not (required or passed_on or (not SECRET_NAMES.search(variable) and not has_user_part)):
                    found.append(f"{name}: {variable}={value}")
    assert found == []


@pytest.mark.parametrize("name", OURS)
def test_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service


@pytest.mark.parametrize("name", OURS)
def test_variables_are_settings(name: str) -> None:
    known = {f"TUNEWRIGHT_{field.upper()}" for field in Settings.model_fields}
    ours = {variable for variable in SERVICES[name]["environment"] if variable.startswith("TUNEWRIGHT_")}
    assert known - ours == {"TUNEWRIGHT_DATA_DIR"}  # the image's
    assert ours <= known


def test_processes_wait_for_the_schema_and_the_broker() -> None:
    for name in OURS:
        waits = SERVICES[name]["depends_on"]
        if name == "migrate":
            assert waits == {"postgres": {"condition": "service_healthy"}}
        else:
            assert waits["migrate"]["condition"] == "service_completed_successfully"
            assert waits["redis"]["condition"] == "service_healthy"


def test_gpus_are_asked_for_only_with_the_profile() -> None:
    with_gpu = [name for name, service in SERVICES.items() if "devices" in str(service.get("deploy", ""))]
    assert with_gpu == ["worker-gpu"]
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]


def test_every_volume_is_declared() -> None:
    named = {
        mount.partition(":")[0]
        for service in SERVICES.values()
        for mount in service.get("volumes", [])
        if isinstance(mount, str)
    }
    assert named == set(COMPOSE["volumes"])


def test_image_runs_without_privileges_and_pins_torch_as_the_project_does() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", dockerfile, re.MULTILINE)
    pinned = re.search(r'"(torch==[^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert pinned is not None
    for recipe in (dockerfile, (ROOT / "Makefile").read_text()):
        assert pinned[1] in recipe
