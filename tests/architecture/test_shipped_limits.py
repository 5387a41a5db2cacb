"""Tests and benchmarks run with the limits as they ship: a looser one hid that pauses were counted as crashes.

A time that a test shortens is another matter: it makes what is awaited come sooner, and loses leases and processes
sooner too, so nothing passes that would fail with the time as it ships.
"""

import ast
from collections.abc import Iterator

from core.settings import Settings
from tests.architecture.sources import python_files, shown, tree_of

LIMITS = {name for name in Settings.model_fields if name.startswith("max_") or "_per_" in name or "_at_once" in name}

CHANGED = {
    # Smaller than they ship, to be reached soon.
    ("tests/integration/api/conftest.py", "max_upload_bytes"),
    ("tests/integration/api/test_abuse.py", "max_upload_bytes"),
    ("tests/integration/api/test_fuzzing.py", "max_upload_bytes"),
    ("tests/integration/api/test_limits.py", "address_requests_per_minute"),
    ("tests/integration/api/test_limits.py", "code_guesses_per_hour"),
    ("tests/integration/api/test_limits.py", "key_requests_per_minute"),
    ("tests/integration/api/test_limits.py", "max_upload_bytes"),
    ("tests/integration/api/test_passwords.py", "sign_in_failures_per_hour"),
    ("tests/integration/core/test_job_machine.py", "max_attempts"),
    ("tests/unit/cli/test_data_file.py", "max_upload_bytes"),
    # None at all: hundreds of tests, or of generated requests, come from one address within the minute and the hour.
    ("tests/integration/api/conftest.py", "address_requests_per_minute"),
    ("tests/integration/api/conftest.py", "code_guesses_per_hour"),
    ("tests/integration/api/test_fuzzing.py", "address_requests_per_minute"),
    ("tests/integration/api/test_fuzzing.py", "code_guesses_per_hour"),
    ("tests/integration/api/test_fuzzing.py", "key_requests_per_minute"),
    ("bench/api.py", "address_requests_per_minute"),
    ("bench/api.py", "key_requests_per_minute"),
}


def test_limits_are_those_that_ship() -> None:
    found = {(shown(path), name) for path in python_files("tests", "bench") for name in _set_in(tree_of(path))}
    assert found == CHANGED


def _set_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(keywords=keywords):
                names = [keyword.arg for keyword in keywords]
            case ast.Dict(keys=keys):
                names = [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
            case ast.Assign(targets=[ast.Subscript(slice=ast.Constant(value=str(key)))]):
                names = [key]
            case _:
                continue
        yield from LIMITS & {name.removeprefix("TUNEWRIGHT_").lower() for name in names if name is not None}
