"""The image, built from the Dockerfile: by Docker, or where there is none by buildah as root.

Without a registry the base image is stood in for by Debian's bookworm with this machine's Python 3.11 under /usr/local,
which is what python:3.11-slim-bookworm is.
"""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
TAG = "localhost/tunewright-check"
MIRROR = "http://deb.debian.org/debian"
# What Python's own modules link to.
_LIBRARIES = (
    "ca-certificates", "tzdata", "libssl3", "libffi8", "libsqlite3-0", "libbz2-1.0", "liblzma5", "libreadline8",
    "libncursesw6", "libuuid1", "zlib1g", "libexpat1",
)  # fmt: skip
_PULL_SECONDS = 60  # for a registry to answer at all, and a slim image to come


@dataclass(frozen=True)
class Image:
    """A built image, its root on this machine, and how it says to be started."""

    root: Path
    entrypoint: tuple[str, ...]
    environment: dict[str, str]
    user: int


def has_docker() -> bool:
    """Whether a Docker daemon answers."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def build(work: Path, flags: str) -> Image:
    """Build with buildah, its storage in `work`; `flags` are more of its own, such as a network's certificates.

    Raises CalledProcessError, and SystemExit where a tool is missing.
    """
    for tool in ("buildah", "debootstrap", "bwrap", "setpriv"):
        if shutil.which(tool) is None:
            raise SystemExit(f"There is no Docker and no {tool}: apt-get install buildah debootstrap bubblewrap.")
    buildah = Buildah(work / "storage")
    if not buildah.has(BASE) and not buildah.pull(BASE):
        print("No registry in reach: making a stand-in for the base image.", flush=True)
        _make_base(buildah, work)
    started = ("bud", "--isolation", "chroot", "--network", "host", "--pull-never", "--tag", TAG)
    buildah.run(*started, *shlex.split(flags), str(ROOT))
    return buildah.mounted(TAG)


@dataclass(frozen=True)
class Buildah:
    """buildah with storage of its own."""

    storage: Path

    def run(self, *arguments: str) -> None:
        """Run and show what it says. Raises CalledProcessError."""
        subprocess.run(self._command(*arguments), check=True)

    def ask(self, *arguments: str) -> str:
        """Run and return what it says. Raises CalledProcessError."""
        command = self._command(*arguments)
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        """Whether the image is in the storage."""
        command = self._command("inspect", "--type", "image", image)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def pull(self, image: str) -> bool:
        """Whether the image came from its registry."""
        command = self._command("pull", "--quiet", image)
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=_PULL_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def mounted(self, image: str) -> Image:
        """The image with its root where any user may read it."""
        config = json.loads(self.ask("inspect", "--type", "image", image))["OCIv1"]["config"]
        container = self.ask("from", "--pull-never", image)
        root = Path(self.ask("mount", container))
        for folder in root.parents:
            if folder.is_relative_to(self.storage.parent):
                folder.chmod(0o755)
        environment = dict(pair.split("=", 1) for pair in config["Env"])
        return Image(root, tuple(config["Entrypoint"]), environment, int(config["User"].partition(":")[0]))

    def _command(self, *arguments: str) -> list[str]:
        places = ["--root", str(self.storage / "root"), "--runroot", str(self.storage / "run")]
        return ["buildah", *places, *arguments]


def _make_base(buildah: Buildah, work: Path) -> None:
    """Debian with Python 3.11 in a prefix of its own, as an image of the base's name."""
    if sys.version_info[:2] != (3, 11) or Path(sys.base_prefix) == Path("/usr"):
        raise SystemExit("A stand-in for the base image needs a Python 3.11 with a prefix of its own, as pyenv makes.")
    root = work / "base"
    shutil.rmtree(root, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(_LIBRARIES)}", "bookworm", str(root), MIRROR]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    prefix, python = Path(sys.base_prefix), "python3.11"
    (root / "usr/local/bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(prefix / "bin" / python, root / "usr/local/bin" / python)
    ignored = shutil.ignore_patterns("site-packages", "__pycache__", "test", "tkinter", "idlelib", "*.a")
    for folder in ("lib", "include"):
        shutil.copytree(prefix / folder, root / "usr/local" / folder, symlinks=True, ignore=ignored, dirs_exist_ok=True)
    (root / "usr/local/lib" / python / "site-packages").mkdir(exist_ok=True)
    (root / "usr/local/bin/python3").symlink_to(python)
    (root / "usr/local/bin/python").symlink_to(python)
    inside = ["chroot", str(root), "/usr/bin/env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]
    subprocess.run([*inside, "ldconfig"], check=True)
    subprocess.run([*inside, "python3", "-m", "ensurepip", "--default-pip"], check=True, stdout=subprocess.DEVNULL)
    container = buildah.ask("from", "scratch")
    buildah.run("add", "--quiet", container, str(root), "/")
    search = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    buildah.run("config", "--env", search, "--env", "LANG=C.UTF-8", "--cmd", "python3", container)
    buildah.run("commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(root)
