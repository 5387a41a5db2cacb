"""`tunewright check`: what the settings are, and whether what they name answers."""

from api.readiness import Readiness, State
from cli.database import DataDirectory
from cli.terminal import err, out
from core.errors import ServiceUnavailableError
from core.runtime import open_runtime
from core.settings import Settings
from core.settings_loading import load_settings, variables


def check(data: DataDirectory = None) -> None:
    """Check the settings, and whether the database, the broker and the store answer.

    Everything that is wrong with the settings is said at once (exit code 2); then each part that does not answer (1).
    """
    settings = load_settings(data)
    for name, variable in variables().items():
        if name in settings.model_fields_set:
            out.print(f"{variable}={getattr(settings, name)}", soft_wrap=True, markup=False)
    state = _ask(settings)
    for warning in state.warnings:
        err.print(f"Note: {warning.removesuffix('?')}{'?' if warning.endswith('?') else '.'}", soft_wrap=True)
    if state.problems:
        raise ServiceUnavailableError(f"Not ready: {', '.join(state.problems)}.")
    out.print("The settings are right; database, broker and store answer.")
    if not settings.public_url:
        err.print(
            f"Note: {variables()['public_url']} is not set. Behind a proxy it is needed: without it cookies are not "
            "protected by TLS, and signing in with a password is refused.",
            soft_wrap=True,
        )


def _ask(settings: Settings) -> State:
    runtime = open_runtime(settings)
    try:
        return Readiness(runtime).check()
    finally:
        runtime.close()
