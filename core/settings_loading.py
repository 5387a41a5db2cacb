"""Reading the settings of a process, with everything that is wrong with them said at once.

A variable that is misspelt would otherwise leave its default in force in silence: an SQLite file where a PostgreSQL was
meant. So a name that starts like ours and is none of ours is an error too.
"""

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError

from core.errors import InvalidSettingsError
from core.settings import PREFIX, Settings

# What starts like a setting and is read elsewhere: by the command line, the examples, compose and the tests.
OTHER_VARIABLES = {f"{PREFIX}{name}" for name in ("API_KEY", "BASE_URL", "PASSWORD", "IMAGE", "LISTEN", "THOROUGH")}
# Empty, these would fall back to what keeps everything on this machine.
NEVER_EMPTY = {f"{PREFIX}{name}" for name in ("DATABASE_URL", "REDIS_URL", "STORE_URL")}


def load_settings(data_dir: Path | None = None) -> Settings:
    """The settings of this process, from its environment. Raises InvalidSettingsError, which names all that is wrong.

    `data_dir` stands in for the variable.
    """
    problems = list(_wrong_names(os.environ))
    settings: Settings | None = None
    try:
        settings = Settings(data_dir=data_dir) if data_dir is not None else Settings()
    except ValidationError as error:
        problems += [_sentence(problem) for problem in error.errors(include_url=False, include_context=False)]
    except SettingsError as error:  # a value that should be JSON and is none
        field = str(error).split('"')[1]
        problems.append(f"{_variable(field)} is no JSON. Example: {_example(field)}")
    if settings is None or problems:
        raise InvalidSettingsError("\n".join(problems))
    return settings


def variables() -> dict[str, str]:
    """The variable of each setting, by the setting's name."""
    return {name: _variable(name) for name in Settings.model_fields}


def _wrong_names(environment: Mapping[str, str]) -> Iterator[str]:
    known = set(variables().values())
    for name in sorted(environment):
        if not name.upper().startswith(PREFIX):
            continue
        setting = name.upper().split("__")[0]
        if setting not in known | OTHER_VARIABLES:
            near = get_close_matches(setting, known, n=1)
            yield f"{name} is no setting." + (f" Did you mean {near[0]}?" if near else "")
        elif setting in NEVER_EMPTY and not environment[name]:
            example = _example(setting.removeprefix(PREFIX).lower())
            yield f"{name} is empty. Unset it to keep all on this machine, or give it a value. Example: {example}"


def _sentence(problem: Any) -> str:
    """One problem that pydantic found, without the value, which may be a secret."""
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if not problem["loc"]:
        return f"{message}."
    field = str(problem["loc"][0])
    inner = "".join(f"[{part}]" for part in problem["loc"][1:])
    return f"{_variable(field)}{inner}: {message[:1].lower()}{message[1:]}. Example: {_example(field)}"


def _variable(field: str) -> str:
    return f"{PREFIX}{field.upper()}"


def _example(field: str) -> str:
    info = Settings.model_fields[field]
    value = info.examples[0] if info.examples else info.get_default(call_default_factory=True)
    return f"{_variable(field)}={value}"
