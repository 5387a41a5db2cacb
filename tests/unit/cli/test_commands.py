"""Commands say one clear thing: a result on standard output, or an error on one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from cli.log_files import warning_in
from cli.main import COMMANDS, build


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNEWRIGHT_")}
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        env={**kept, "COLUMNS": "100", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_answers_at_once() -> None:
    _run("--help")  # compiles, where nothing has yet
    before = os.times()
    result = _run("--help")
    after = os.times()  # processor time: a busy machine is not the command's fault
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1.0
    assert all(name in result.stdout for name in COMMANDS)


def test_help_loads_no_command() -> None:
    script = "import sys; from cli.main import build; build(['--help']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert {"sqlalchemy", "celery", "uvicorn", "pyarrow", "torch"} & set(loaded) == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name: str) -> None:
    command = typer.main.get_command(build([name])).commands[name]
    assert (command.help or "").partition("\n")[0].startswith(COMMANDS[name][1].removesuffix("."))


def test_a_key_is_printed_alone(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    assert _run("migrate", "--data", data).returncode == 0
    result = _run("keys", "create", "--data", data)
    assert result.returncode == 0
    secret, newline, rest = result.stdout.partition("\n")
    assert (secret[:3], newline, rest) == ("tw-", "\n", "")


def test_codes_are_made_once_and_listed(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    _run("migrate", *data)
    made = _run("codes", "create", "santiago", "--credits", "10000", "--expires", "2100-01-01", *data)
    assert made.stdout == "SANTIAGO is worth 10,000 credits.\n"
    again = _run("codes", "create", "SANTIAGO", "--credits", "1", *data)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "error: The code SANTIAGO exists already.\n"
    listed = _run("codes", "list", *data).stdout
    assert "SANTIAGO" in listed
    assert "2100-01-01" in listed


def test_lists_show_whole_ids_in_a_narrow_terminal_and_all_of_it_to_programs(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    _run("migrate", *data)
    secrets = [_run("keys", "create", "--name", f"a laptop with a long name {n}", *data).stdout[:-1] for n in range(2)]
    for command, field in (("accounts", "organization"), ("keys", "id"), ("models", "id")):
        rows = json.loads(_run(command, "list", "--json", *data).stdout)
        listed = _run(command, "list", *data, COLUMNS="80").stdout
        assert rows
        for row in rows:
            assert row[field] in listed, command
        assert max(map(len, listed.splitlines())) <= 80
    for command in (("codes", "list"), ("jobs",), ("workers",)):
        assert json.loads(_run(*command, "--json", *data).stdout) == []

    refused = _run("keys", "revoke", "tw-", *data)
    assert (refused.returncode, "2 keys begin with 'tw-'" in refused.stderr) == (1, True)
    prefix = secrets[0][:9]
    assert f"{prefix}" in _run("keys", "revoke", prefix, *data).stdout
    states = {row["prefix"][:9]: row["revoked_at"] for row in json.loads(_run("keys", "list", "--json", *data).stdout)}
    assert states[prefix] is not None
    assert states[secrets[1][:9]] is None


def test_a_database_of_another_release_is_named_as_such(tmp_path: Path) -> None:
    result = _run("keys", "create", "--data", str(tmp_path / "empty"))
    assert result.returncode == 1
    assert "tunewright migrate" in result.stderr
    assert "Traceback" not in result.stderr


def test_migrate_checks_without_changing(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    assert _run("migrate", "--check", *data).returncode == 1
    assert _run("migrate", "--check", *data).returncode == 1
    assert _run("migrate", *data).stdout.startswith("Applied: 0001")
    assert _run("migrate", "--check", *data).returncode == 0
    assert _run("migrate", *data).stdout == "The database is up to date.\n"


def test_jobs_of_an_empty_database(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    _run("migrate", *data)
    assert _run("jobs", *data).stdout == "No jobs yet.\n"


def test_jobs_of_a_service_that_is_away() -> None:
    result = _run("jobs", "--base-url", "http://127.0.0.1:9", "--api-key", "tw-none")
    assert result.returncode == 1
    assert result.stderr.startswith("error: No service answers at http://127.0.0.1:9")


def test_an_unreachable_database_is_one_line() -> None:
    result = _run("migrate", TUNEWRIGHT_DATABASE_URL="postgresql+psycopg://nobody@127.0.0.1:9/none")
    assert result.returncode == 1
    assert result.stderr.startswith("error: The database could not be migrated:")
    assert "Traceback" not in result.stderr


def test_a_wrong_setting_is_named_and_is_a_usage_error() -> None:
    result = _run("migrate", TUNEWRIGHT_LEASE_SECONDS="soon")
    assert result.returncode == 2
    assert result.stderr.startswith("error: TUNEWRIGHT_LEASE_SECONDS: ")


@pytest.mark.parametrize(
    "arguments", [("dance",), ("codes", "create", "X"), ("codes", "create", "X", "--credits", "0")]
)
def test_wrong_usage_exits_with_two(arguments: tuple[str, ...]) -> None:
    assert _run(*arguments).returncode == 2


def test_warnings_of_a_log_are_told_from_the_rest() -> None:
    assert (
        warning_in(b'{"event": "lease_expired", "level": "warning", "job_id": "ftjob-1"}')
        == "lease_expired job_id=ftjob-1"
    )
    assert warning_in(b'{"event": "started", "level": "info"}') is None
    assert warning_in(b'{"half a line') is None
    assert warning_in(b"1:M Ready to accept connections") is None
