"""`python -m worker --device cuda:0 --device cuda:1`, `--device cpu` or `--maintenance`: one worker process."""

import argparse
import sys

from sqlalchemy.exc import DBAPIError

from core.db.migrate import schema_problem
from core.db.session import Database
from core.errors import InvalidSettingsError
from core.liveness import beat_in_thread
from core.logging import configure_logging
from core.own_process import keep_private
from core.runtime import open_runtime
from core.settings_loading import load_settings
from worker import maintenance, training_worker
from worker.tidying import tidy_in_thread, tidy_runs, tidy_store


def main() -> None:
    """Run one worker until it is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    duty = parser.add_mutually_exclusive_group(required=True)
    duty.add_argument("--device", metavar="cpu|cuda:N[:SLICE]|UUID", action="append", help="train on this device")
    duty.add_argument("--maintenance", action="store_true", help="inspect files and sweep for what was lost")
    arguments = parser.parse_args()

    try:
        settings = load_settings()
    except InvalidSettingsError as error:
        sys.exit(error.message)
    configure_logging(settings.log_level, as_json=settings.log_json)
    keep_private(settings.data_dir)
    beat_in_thread(settings.liveness_file)
    runtime = open_runtime(settings)
    try:
        refuse_foreign_schema(runtime.database)
        if arguments.maintenance:
            tidy_in_thread(tidy_store, runtime)
            maintenance.run(runtime)
        else:
            tidy_in_thread(tidy_runs, runtime)
            training_worker.run(runtime, arguments.device)
    finally:
        runtime.close()


def refuse_foreign_schema(database: Database) -> None:
    """Raises SystemExit where the database is of another release; one that is away may be waited for."""
    try:
        problem = schema_problem(database)
    except DBAPIError:
        return
    if problem is not None:
        sys.exit(f"This worker cannot work: {problem}.")


if __name__ == "__main__":
    main()
