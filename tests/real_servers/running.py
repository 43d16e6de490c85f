"""Real HTTP servers of different make, each as a child process on free ports of loopback, without root.

Rules:
1. A server is its configuration and its command; it runs in a directory of its own and is stopped by its pid.
2. All serve the same documents, so that one set of tests holds for each.
3. A server that is not installed fails the tests where CI is set, and skips them elsewhere, with the line that installs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest
import trustme

__all__ = ["INSTALL", "LARGE", "SERVERS", "TEXT", "Running", "run_server"]

INSTALL = (
    "apt-get install --no-install-recommends "
    "nginx-light apache2 lighttpd lighttpd-mod-deflate lighttpd-mod-openssl haproxy nodejs"
)
TEXT = b"".join(b"line %d of a text that is worth packing\n" % number for number in range(5000))
LARGE = 24 << 20
#: Seconds that an idle connection is kept by every server here.
KEPT = 1


@dataclasses.dataclass
class Running:
    """A server that runs. `can` are the things that not every server does."""

    name: str
    http: str
    https: str
    ca_file: str
    www: pathlib.Path
    can: frozenset[str]
    process: subprocess.Popen[bytes]
    reload_signal: int | None = None

    def reload(self) -> None:
        """Let it begin anew without dropping what is under way."""
        assert self.reload_signal is not None
        self.process.send_signal(self.reload_signal)


@dataclasses.dataclass(frozen=True)
class Server:
    """How one server is run: `configure(root, http, https)` gives the command."""

    program: str
    configure: Callable[[pathlib.Path, int, int], list[str]]
    can: frozenset[str]
    reload_signal: int | None = None
    behind: str | None = None  #: the server that stands behind this one


# ---------------------------------------------------------------------------------------------------- configurations


def _nginx(root: pathlib.Path, http: int, https: int) -> list[str]:
    user = f"user {pwd.getpwuid(os.getuid()).pw_name};" if os.getuid() == 0 else ""
    temporary = " ".join(
        f"{kind}_temp_path {root}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (root / "nginx.conf").write_text(
        f"""
        daemon off; {user} worker_processes 1; pid {root}/nginx.pid; error_log {root}/error.log error;
        events {{ worker_connections 1024; }}
        http {{
          access_log off; keepalive_timeout {KEPT}s; {temporary} default_type text/plain;
          gzip on; gzip_types *; gzip_min_length 1000;
          server {{
            listen 127.0.0.1:{http}; listen 127.0.0.1:{https} ssl http2; root {root}/www;
            ssl_certificate {root}/cert.pem; ssl_certificate_key {root}/key.pem;
          }}
        }}
        """
    )
    return ["nginx", "-c", str(root / "nginx.conf"), "-e", str(root / "error.log")]


def _apache(root: pathlib.Path, http: int, https: int) -> list[str]:
    names = (
        "mpm_event", "http2", "ssl", "socache_shmcb", "authz_core", "dir", "mime", "deflate", "filter", "headers",
        "setenvif",
    )  # fmt: skip
    modules = "\n".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in names)
    user = "User www-data\nGroup www-data" if os.getuid() == 0 else ""
    (root / "types").write_text("text/plain txt\n")
    (root / "apache.conf").write_text(
        f"""
{modules}
{user}
ServerRoot {root}
ServerName 127.0.0.1
PidFile {root}/apache.pid
ErrorLog {root}/error.log
DefaultRuntimeDir {root}
Mutex sem
TypesConfig {root}/types
Listen 127.0.0.1:{http}
Listen 127.0.0.1:{https}
KeepAliveTimeout {KEPT}
MaxKeepAliveRequests 0
DocumentRoot {root}/www
SetOutputFilter DEFLATE
DeflateAlterETag NoChange
SetEnvIf Request_URI large no-gzip
Protocols h2 http/1.1
<Directory {root}/www>
  Require all granted
</Directory>
<VirtualHost 127.0.0.1:{https}>
  SSLEngine on
  SSLCertificateFile {root}/cert.pem
  SSLCertificateKeyFile {root}/key.pem
</VirtualHost>
"""
    )
    return ["apache2", "-f", str(root / "apache.conf"), "-DFOREGROUND"]


def _lighttpd(root: pathlib.Path, http: int, https: int) -> list[str]:
    (root / "cache").mkdir()
    (root / "lighttpd.conf").write_text(
        f"""
server.modules = ("mod_openssl", "mod_deflate")
server.document-root = "{root}/www"
server.bind = "127.0.0.1"
server.port = {http}
server.errorlog = "{root}/error.log"
server.max-keep-alive-idle = {KEPT}
server.max-keep-alive-requests = 100000
mimetype.assign = (".txt" => "text/plain", ".html" => "text/html")
index-file.names = ("index.html")
deflate.mimetypes = ("text/plain", "text/html")
deflate.allowed-encodings = ("gzip")
$SERVER["socket"] == "127.0.0.1:{https}" {{
  ssl.engine = "enable"
  ssl.pemfile = "{root}/both.pem"
}}

"""
    )
    return ["lighttpd", "-D", "-f", str(root / "lighttpd.conf")]


def _haproxy(root: pathlib.Path, http: int, https: int) -> list[str]:
    behind = (root / "behind").read_text()
    (root / "haproxy.cfg").write_text(
        f"""
global
  maxconn 1000
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  timeout http-keep-alive {KEPT}s
frontend plain
  bind 127.0.0.1:{http}
  default_backend there
frontend secure
  bind 127.0.0.1:{https} ssl crt {root}/both.pem alpn h2,http/1.1
  default_backend there
backend there
  server one {behind.removeprefix("http://")}
"""
    )
    return ["haproxy", "-W", "-db", "-q", "-f", str(root / "haproxy.cfg")]


def _node(root: pathlib.Path, http: int, https: int) -> list[str]:
    script = pathlib.Path(__file__).with_name("server.js")
    return ["node", str(script), str(root), str(http), str(https), str(KEPT * 1000)]


def _uvicorn(root: pathlib.Path, http: int, https: int) -> list[str]:
    script = pathlib.Path(__file__).with_name("asgi.py")
    return [sys.executable, str(script), str(root), str(http), str(https), str(KEPT)]


_FILES = frozenset({"ranges", "etag", "gzip", "slash", "reload"})
# «h2 shared»: more than a hundred streams on a connection. lighttpd allows eight.
SERVERS = {
    "nginx": Server("nginx", _nginx, _FILES | {"h2", "h2 shared"}, signal.SIGHUP),
    "apache": Server("apache2", _apache, _FILES | {"h2", "h2 shared"}, signal.SIGUSR1),
    "lighttpd": Server("lighttpd", _lighttpd, _FILES | {"h2"}, signal.SIGUSR1),
    "haproxy": Server("haproxy", _haproxy, _FILES | {"h2", "h2 shared"}, signal.SIGUSR2, "nginx"),
    "node": Server("node", _node, frozenset({"echo", "h2", "h2 shared", "gzip"})),
    "uvicorn": Server("", _uvicorn, frozenset({"echo", "gzip"})),
}


# ---------------------------------------------------------------------------------------------------- running


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _documents(root: pathlib.Path) -> None:
    www = root / "www"
    (www / "folder").mkdir(parents=True)
    (www / "doc").write_bytes(b"a small document\n")
    (www / "text.txt").write_bytes(TEXT)
    (www / "folder" / "index.html").write_bytes(b"the index\n")
    with (www / "large").open("wb") as file:
        file.truncate(LARGE)
    for path in www.rglob("*"):  # a file of this very second has a weak ETag
        os.utime(path, (time.time() - 3600,) * 2)
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(root / "ca.pem")
    issued.private_key_pem.write_to_path(root / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(root / "cert.pem", append=True)
    issued.private_key_and_cert_chain_pem.write_to_path(root / "both.pem")
    for path in (root, www, www / "folder"):
        path.chmod(0o755)
    for name in ("key.pem", "both.pem"):
        (root / name).chmod(0o644)


@contextlib.contextmanager
def run_server(name: str) -> Iterator[Running]:
    """Run a server for the time of a block."""
    server = SERVERS[name]
    os.environ["PATH"] = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
    if server.program and shutil.which(server.program) is None:
        message = f"{name} is not installed: {INSTALL}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    root = pathlib.Path(tempfile.mkdtemp(prefix=f"headrace-{name}-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        _documents(root)
        www = root / "www"
        if server.behind is not None:
            behind = stack.enter_context(run_server(server.behind))
            (root / "behind").write_text(behind.http)
            www = behind.www
        http, https = _free_ports(2)
        with (root / "out").open("wb") as out:
            command = server.configure(root, http, https)
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        stack.callback(_stop, process)
        _await_port(http, process, root)
        yield Running(
            name,
            f"http://127.0.0.1:{http}",
            f"https://127.0.0.1:{https}",
            str(root / "ca.pem"),
            www,
            server.can,
            process,
            server.reload_signal,
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def _await_port(port: int, process: subprocess.Popen[bytes], root: pathlib.Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    said = [(root / name).read_text() for name in ("out", "error.log") if (root / name).exists()]
    raise RuntimeError(f"the server did not start: {' '.join(said)}")
