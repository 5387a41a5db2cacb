"""`python -m cli`: the command line where the `tunewright` script is not on the path."""

from cli.main import app

if __name__ == "__main__":
    app()
