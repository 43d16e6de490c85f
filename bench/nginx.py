"""A real web server for the benchmarks: nginx on loopback, http and https, in a directory of its own.

Rules:
1. It runs from a temporary configuration on free ports, as one worker, and only its own process is ever
   stopped.
2. The benchmarks are pinned to the other core, so that client and server do not take time from each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

DOCUMENT = (b"<html><body>" + b"The quick brown fox jumps over the lazy dog. " * 30)[:928] + b"</body></html>"

CONFIG = """
daemon off; master_process off; worker_processes 1; pid {root}/nginx.pid; error_log {root}/error.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 75s; sendfile on; tcp_nodelay on;
  client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
  uwsgi_temp_path {root}/u; scgi_temp_path {root}/s; default_type text/html;
  server {{ listen 127.0.0.1:{http} backlog=4096; root {root}/www; }}
  server {{ listen 127.0.0.1:{https} ssl backlog=4096; root {root}/www;
    ssl_certificate {root}/cert.pem; ssl_certificate_key {root}/key.pem; }}
}}
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Nginx:
    """A running nginx; `ca_file` is what a client must trust."""

    http: str
    https: str
    ca_file: str
    pid: int
    root: str  #: where the files it serves are


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _certificate(root: pathlib.Path) -> None:
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(root / "ca.pem")
    issued.private_key_pem.write_to_path(root / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(root / "cert.pem", append=True)


@contextlib.contextmanager
def nginx(core: int | None = 0) -> Iterator[Nginx]:
    """Run nginx for the time of a block, pinned to `core`. Raises RuntimeError where it is missing or does
    not start.
    """
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not os.path.exists(program):
        raise RuntimeError("nginx is not installed: apt-get install nginx-light")
    root = pathlib.Path(tempfile.mkdtemp(prefix="headrace-nginx-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        (root / "www").mkdir()
        (root / "www" / "doc").write_bytes(DOCUMENT)
        root.chmod(0o755)
        _certificate(root)
        http, https = _free_ports(2)
        config = root / "nginx.conf"
        config.write_text(CONFIG.format(root=root, http=http, https=https))
        process = subprocess.Popen([program, "-c", str(config), "-e", str(root / "error.log")])
        if core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {core})
        _await_port(http, process, root)
        yield Nginx(
            f"http://127.0.0.1:{http}",
            f"https://127.0.0.1:{https}",
            str(root / "ca.pem"),
            process.pid,
            str(root / "www"),
        )
    finally:
        if process is not None:
            process.terminate()
            process.wait(10)
        shutil.rmtree(root, ignore_errors=True)


def _await_port(port: int, process: subprocess.Popen[bytes], root: pathlib.Path) -> None:
    for _ in range(100):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    log = root / "error.log"
    raise RuntimeError(f"nginx did not start: {log.read_text() if log.exists() else 'no log'}")
