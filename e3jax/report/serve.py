"""Serve a run's pages to a browser while it trains, for this machine only (127.0.0.1).

The first page is the run as it goes, which refreshes itself (report/live.py); report and samples are linked there. The
run may be in a bucket. A page is made at a request if the records have changed since the last one; nothing is written
into the run's directory. A client that stays silent, or does not read its answer, is dropped after TIMEOUT_S.

    python -m e3jax.report.serve runs/quickstart
    python -m e3jax.report.serve gs://my-bucket/runs/first --port=8001
"""

import argparse
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from etils import epath

from e3jax.errors import UserError, first_line
from e3jax.printable import printable
from e3jax.report import browser, live
from e3jax.report.html import report_page
from e3jax.report.page import SAMPLES_PAGE
from e3jax.report.read_run import FILES
from e3jax.storage import place

PAGES = {
    "run.html": live.page,
    "report.html": report_page,
    SAMPLES_PAGE: lambda run_dir: browser.page([run_dir]),
    "run.json": live.live_json,
}
HOSTS = ("127.0.0.1", "localhost")
TIMEOUT_S = 10.0  # between two reads or writes of a connection


class Pages:
    """The pages of one run, kept until its records change."""

    def __init__(self, run_dir: epath.PathLike):
        self.run_dir, self.kept, self.lock = place(run_dir), {}, threading.Lock()

    def records(self) -> tuple:
        """Return the sizes and times of the records, which change when one grows."""
        files = [self.run_dir / name for name in (*FILES, "DONE")]
        stats = [(file.name, file.stat()) for file in files if file.exists()]
        return tuple((name, stat.length, str(stat.mtime)) for name, stat in stats)

    def first(self) -> str:
        """Return the name of the first page: the report where nothing is trained, as in an evaluation's directory."""
        evaluated = (self.run_dir / "eval.jsonl").exists() and not (self.run_dir / "metrics.jsonl").exists()
        return "report.html" if evaluated else "run.html"

    def read(self, name: str) -> bytes:
        """Return a page of PAGES. Raises FileNotFoundError if the run has nothing to show yet."""
        with self.lock:
            now = self.records()
            if name not in self.kept or self.kept[name][0] != now:
                self.kept[name] = now, PAGES[name](self.run_dir).encode(errors="replace")
            return self.kept[name][1]


class Server(ThreadingHTTPServer):
    """A server that does not report connections that break or stay silent."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def make_server(run_dir: epath.PathLike, port: int) -> ThreadingHTTPServer:
    """Return a server on 127.0.0.1 (port 0: any free port) that answers GET of PAGES, and of / with the first page."""
    pages = Pages(run_dir)

    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_S

        def do_GET(self):
            name = self.path.partition("?")[0].strip("/") or pages.first()
            if (self.headers["Host"] or "").partition(":")[0] not in HOSTS:  # another site's name for this machine
                return self.answer(403, b"this server answers to the name localhost only")
            if name not in PAGES:
                return self.answer(404, f"there is no such page, only {' and '.join(PAGES)}".encode())
            try:
                text = pages.read(name)
            except (FileNotFoundError, UserError) as error:
                return self.answer(404, printable(first_line(error), lines=False).encode())
            except Exception as error:  # a bug in one page: the server and the other page stay
                message = f"{name} could not be made: {type(error).__name__}: {first_line(error)}"
                return self.answer(500, printable(message, lines=False).encode())
            self.answer(200, text, "text/html" if name.endswith(".html") else "application/json")

        def answer(self, status: int, text: bytes, kind: str = "text/plain"):
            self.send_response(status)
            headers = {
                "Content-Type": f"{kind}; charset=utf-8",
                "Content-Length": str(len(text)),
                "Cache-Control": "no-store",
            }
            for key, value in (headers | {"X-Content-Type-Options": "nosniff"}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            """Stay silent about requests."""

    return Server(("127.0.0.1", port), Handler)


def main() -> None:
    """The command: show a run's pages on this machine."""
    about = {"prog": "python -m e3jax.report.serve", "description": "Show a run's pages on http://127.0.0.1."}
    parser = argparse.ArgumentParser(**about)
    parser.add_argument("run_dir", help="the directory that a training or evaluation command wrote, or is writing")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    try:
        server = make_server(given.run_dir, given.port)
        print(f"http://127.0.0.1:{server.server_address[1]}/; end it with Ctrl-C", flush=True)
        server.serve_forever()
    except OSError as error:
        parser.exit(2, f"port {given.port}: {error.strerror}: choose another --port\n")
    except OverflowError:
        parser.exit(2, f"port {given.port}: choose a --port from 0 to 65535\n")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
