"""The real LiteLLM proxy, in an environment of its own (its pinned dependencies would clash with ours).

``python -m services.local.litellm VENV`` installs it there, unless it already is.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import venv as virtual_environments
from pathlib import Path

from services.local.process import Process, ProcessError, Program, Server, answers

HERE = Path(__file__).parent
CONFIG = HERE / "litellm.yaml"
CHECKOUT = HERE.parents[1]
LOCK = CHECKOUT / "deploy" / "requirements" / "litellm.txt"
UNLOCKED = "litellm[proxy]==1.106.2"  # without a checkout there is no lock
STAMP = "installed"


def environment(data: Path) -> Path:
    """The folder of LiteLLM's virtual environment: one per checkout, so that runs and tests share it."""
    return CHECKOUT / ".venv-litellm" if LOCK.exists() else data / "litellm-venv"


def installed(folder: Path) -> bool:
    """Whether the environment is complete and of the locked versions."""
    stamp = folder / STAMP
    return stamp.exists() and stamp.read_text() == _fingerprint()


def install(folder: Path) -> None:
    """Make the environment unless it is complete. Of several concurrent processes one makes it and the others wait.

    :raises ProcessError: pip failed; its output went to stdout and stderr.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if installed(folder):
            return
        virtual_environments.create(folder, clear=True, symlinks=True, with_pip=True)
        # Not compiled: the first start compiles the modules that it imports, a third of all
        options = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--no-compile"]
        what = ["--no-deps", "-r", str(LOCK)] if LOCK.exists() else [UNLOCKED]
        pip = Program("pip", (str(folder / "bin" / "python"), "-m", "pip", "install", *options, *what))
        if subprocess.run(pip.guarded(), check=False).returncode != 0:  # noqa: S603 - argv is ours
            raise ProcessError("pip could not install LiteLLM")
        (folder / STAMP).write_text(_fingerprint())
    finally:
        os.close(lock)


def installer(folder: Path) -> Program:
    """``install`` as a program, for a supervisor."""
    return Program("LiteLLM's installation", (sys.executable, "-P", "-m", "services.local.litellm", str(folder)))


def progress(log: Path) -> str:
    """The progress of an installation, by its output so far."""
    lines = log.read_text(errors="replace").splitlines()
    if any(line.startswith("Installing collected packages") for line in lines):
        return "unpacking 740 MB"
    fetched = sum(line.startswith(("Collecting ", "Processing ")) for line in lines)
    if not fetched:
        return "making its environment"
    total = len(re.findall(r"(?m)^\S+==", LOCK.read_text())) if LOCK.exists() else None
    return f"fetching package {fetched}{f' of {total}' if total else ''}"


def _fingerprint() -> str:
    what = LOCK.read_bytes() if LOCK.exists() else UNLOCKED.encode()
    return f"{sys.version_info.major}.{sys.version_info.minor} {hashlib.sha256(what).hexdigest()}\n"


class LiteLLMServer(Server):
    """LiteLLM on 127.0.0.1 with the models of ``config``, without a database: no customers, no virtual keys."""

    ready_seconds = 90  # usually 4 s; the first time 9

    def __init__(
        self,
        data: Path,
        port: int,
        *,
        master_key: str,
        venv: Path | None = None,
        config: Path = CONFIG,
        log: Path | None = None,
    ) -> None:
        self.data, self.port, self.master_key = data, port, master_key
        folder = venv or environment(data)
        arguments = ("--config", str(config), "--host", "127.0.0.1", "--port", str(port))
        program = Program(
            name="LiteLLM",
            # -P: a script's own folder is not searched for modules; ours has a litellm.py
            argv=(str(folder.resolve() / "bin" / "python"), "-P", str(HERE / "litellm_start.py"), *arguments),
            # Our variables are not inherited: LiteLLM would use DATABASE_URL as its own
            env={
                "PATH": os.defpath,
                "HOME": str(data),
                "LANG": "C.UTF-8",
                "LITELLM_MASTER_KEY": master_key,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # otherwise it asks the network for prices
                "LITELLM_MODE": "PRODUCTION",  # otherwise it reads the .env of any parent folder
                "LITELLM_DONT_SHOW_FEEDBACK_BOX": "True",
                "DISABLE_ADMIN_UI": "True",
                "NO_COLOR": "1",
            },
            cwd=data,
        )
        self.process = Process(program, log or data.with_name(f"{data.name}.log"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def initialise(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)

    def ready(self) -> bool:
        return answers(f"{self.url}/health/liveliness")


def main(folder: Path) -> None:
    """The installation as a command: pip's output goes to stdout, messages for people to stderr."""
    if installed(folder):
        return
    print(f"Installing LiteLLM into {folder}/ (about a minute, 740 MB)", file=sys.stderr)
    try:
        install(folder)
    except ProcessError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
