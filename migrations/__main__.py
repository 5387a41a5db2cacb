"""`python -m migrations "what changes"`: write the next migration from the difference between models and schema."""

import argparse
import tempfile
from pathlib import Path

from alembic import command

from core.db.migrate import script_config, upgrade
from core.db.session import open_engine


def main() -> None:
    """Compare the models with a fresh database at the newest revision and write the step between them."""
    parser = argparse.ArgumentParser(prog="python -m migrations", description=__doc__)
    parser.add_argument("message", help="what changes, in a few words")
    message: str = parser.parse_args().message
    config = script_config()
    number = len(list((Path(__file__).parent / "versions").glob("[0-9]*.py"))) + 1
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/schema.db"
        upgrade(url)
        engine = open_engine(url)
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.revision(config, message, autogenerate=True, rev_id=f"{number:04d}")
        engine.dispose()


if __name__ == "__main__":
    main()
