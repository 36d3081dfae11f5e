"""The real nginx with the configuration of deploy/nginx, in a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from services.local.process import Process, Program, Server, answers, free_port
from tests.system.harness import HOST, ROOT, System

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
TEMPLATE = ROOT / "deploy" / "nginx" / "mlpa.conf.template"

#: What the distribution's nginx.conf says around a file of conf.d, as far as it can without root.
MAIN = """
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/mlpa.conf;
}}
"""


class Door(Server):
    """nginx in front of a system.

    :param without: a directive of the configuration that is left out.
    :param gateway: host and port of another server in the gateway's place.
    """

    def __init__(self, folder: Path, system: System, *, without: str = "", gateway: str = "") -> None:
        assert NGINX is not None
        self.folder = folder
        self.port = free_port()
        given = {
            "LISTEN": f"{HOST}:{self.port}",
            "AUTH": f"{HOST}:{system.ports[system.auths[0]]}",
            "GATEWAY": gateway or f"{HOST}:{system.ports[system.gateways[0]]}",
        }
        self._configuration = filled(given, without)
        argv = (NGINX, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf"))
        self.process = Process(Program("nginx", argv), folder.with_suffix(".log"))

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def initialise(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "mlpa.conf").write_text(self._configuration)
        # Workers of root's nginx would be somebody who can't read the folder
        user = "user root;" if os.geteuid() == 0 else ""
        (self.folder / "nginx.conf").write_text(MAIN.format(folder=self.folder, user=user))

    def ready(self) -> bool:
        return answers(f"{self.url}/__lbheartbeat__")


def filled(given: dict[str, str], without: str) -> str:
    """The template as envsubst fills it: only what is asked for, so that nginx's own variables stay."""
    text = TEMPLATE.read_text()
    for name, value in given.items():
        text = text.replace(f"${{{name}}}", value)
    if without:
        text, count = re.subn(rf"^\s*{without} .*;$", "", text, flags=re.MULTILINE)
        assert count == 1
    return text
