"""The command line: thin callers of `core`, of the HTTP API, and of the processes that make the service."""
