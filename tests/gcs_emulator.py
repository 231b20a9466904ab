"""A Google Cloud Storage bucket on localhost: gcp-storage-emulator in its own process, objects kept in a directory.

with emulated_bucket(tmp_path) as bucket:
    subprocess.run(command, env=os.environ | bucket.env)    # there, epath and orbax find bucket.url ("gs://…")
    bucket.stop()                                           # connections are refused from here on
    bucket.start()                                          # the same port, the same objects
    bucket.requests()                                       # ["GET /storage/v1/b/bucket/o/run%2Fa 200", …]

What the package lacks and a run leans on is added here, as Google's JSON API describes it: objects move atomically,
preconditions on a generation hold, an upload that its sender did not finish leaves nothing.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"
START_S = 30.0  # for the server to answer: far more than it takes, the machine may be busy


class ConditionNotMet(Exception):
    """Another writer has written the object in between."""


class Emulator:
    """The server's process, and what a client needs to find it."""

    def __init__(self, directory: Path):
        self.directory, self.url, self.port, self.process = directory.absolute(), f"gs://{BUCKET}", 0, None

    def start(self) -> None:
        """Serve on the same port as before; the first time on a free one."""
        command = [sys.executable, __file__, str(self.directory), str(self.port)]
        with (self.directory / "server.log").open("a") as log:
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
            self.process = subprocess.Popen(command, **pipes)
        timer = threading.Timer(START_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()  # empty when it died
        timer.cancel()
        if not line:
            raise RuntimeError(f"no GCS emulator:\n{(self.directory / 'server.log').read_text()[-2000:]}")
        self.port = int(line)

    def stop(self) -> None:
        """End the server after the current request; what was stored stays. A second call does nothing."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def requests(self) -> list[str]:
        """Return METHOD PATH STATUS of every request so far."""
        return (self.directory / "requests.log").read_text().splitlines()

    @property
    def env(self) -> dict[str, str]:
        """Return the variables that lead gcsfs (under epath), google-cloud-storage and tensorstore (orbax) here."""
        address = f"http://127.0.0.1:{self.port}"
        return {
            "STORAGE_EMULATOR_HOST": address,  # gcsfs and google-cloud-storage
            "GOOGLE_CLOUD_PROJECT": "test",
            "FSSPEC_GCS": json.dumps({"token": "anon"}),
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else gcsfs asks by gRPC what kind of bucket it is
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",  # else tensorstore looks for credentials, on the network too
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


@contextmanager
def emulated_bucket(directory: Path) -> Iterator[Emulator]:
    """Run an empty bucket in `directory` within the block."""
    emulator = Emulator(directory)
    emulator.start()
    try:
        yield emulator
    finally:
        emulator.stop()


def serve(directory: Path, port: int) -> None:
    """Answer until stdin is closed, by who started this or by its death; print the port once it is bound."""
    from gcp_storage_emulator.exceptions import Conflict, NotFound
    from gcp_storage_emulator.handlers import buckets, objects
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    class Objects(Storage):
        wanted = None  # generation that the object written or deleted next must have

        def generation(self, name: str) -> str:
            """Return the number that GCS raises with every write; "0" when there is no object."""
            try:
                return self.get_file_obj(BUCKET, name)["generation"]
            except NotFound:
                return "0"

        def check(self, name: str) -> None:
            if self.wanted not in (None, self.generation(name)):
                raise ConditionNotMet(name)

        def create_file(self, bucket_name, file_name, *args):
            self.check(file_name)
            super().create_file(bucket_name, file_name, *args)

        def delete_file(self, bucket_name, file_name):
            self.check(file_name)
            super().delete_file(bucket_name, file_name)

    storage = Objects(data_dir=str(directory / "objects"))
    try:
        buckets.create_bucket(BUCKET, storage)
    except Conflict:
        pass  # started again
    log = (directory / "requests.log").open("a", buffering=1)
    one_at_a_time = threading.Lock()  # the storage is not made for threads

    class Handler(RequestHandler):
        generation = "0"  # of the object that a GET asks for

        def __init__(self, *args):
            super().__init__(storage, *args)

        def handle_one_request(self):
            """Read the whole body before doing anything with it: half a body of a killed sender makes no object."""
            self.raw_requestline = self.rfile.readline(65_537)
            if not self.raw_requestline or not self.parse_request():
                return
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            if len(body) == length:
                self.rfile = BytesIO(body)
                with one_at_a_time:
                    self.answer()

        def answer(self):
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            name, moves, target = url.path.partition(f"/b/{BUCKET}/o/")[2].partition("/moveTo/o/")
            storage.wanted = None if self.command == "GET" else query.get("ifGenerationMatch")
            if self.command == "GET" and name:
                self.generation = storage.generation(unquote(name))
            try:
                if moves:
                    self.move(unquote(name), unquote(target))
                elif query.get("ifGenerationNotMatch") == self.generation != "0":
                    self.reply(304)
                else:
                    getattr(self, f"do_{self.command}")()
            except ConditionNotMet as error:
                self.reply(412, {"error": {"code": 412, "message": f"conditionNotMet: {error}"}})

        def move(self, source: str, target: str):
            try:
                moved = objects._copy("", storage, BUCKET, source, BUCKET, target)
            except NotFound:
                return self.reply(404, {"error": {"code": 404, "message": f"No such object: {BUCKET}/{source}"}})
            storage.wanted = None
            storage.delete_file(BUCKET, source)
            self.reply(200, moved)

        def reply(self, status: int, value: dict | None = None):
            text = json.dumps(value).encode() if value else b""
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def send_response(self, code, message=None):
            log.write(f"{self.command} {self.path} {int(code)}\n")
            super().send_response(code, message)
            if self.command == "GET" and self.generation != "0":
                self.send_header("x-goog-generation", self.generation)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # tensorstore opens dozens of connections at once

        def handle_error(self, request, client_address):
            if not isinstance(sys.exception(), ConnectionError):  # clients may hang up before they read an answer
                super().handle_error(request, client_address)

    with Server(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()
        with one_at_a_time:  # killed while it writes, the package's own records would be cut
            os._exit(0)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
