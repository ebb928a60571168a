"""The page of runs, live: what `report` writes, served to browsers of this machine alone, and new as the runs go on.

    barlow-jax watch runs/photos
    barlow-jax watch runs/a runs/b --port=8000

It prints the address; Ctrl-C ends it. It reads the folders and changes nothing in them, and serves the page and its
data and no file of the disk. From another machine: ssh -L 8642:localhost:8642 HOST, and the same address there.
"""

import errno
import http.server
import json
import logging
import pathlib
import sys
import threading
import time

from barlow_jax.errors import UserError
from barlow_jax.results import folders, page
from barlow_jax.run import launch
from barlow_jax.run.buckets import reading

ADDRESS = "127.0.0.1"
FRESH = 15.0  # seconds between two looks into a bucket
HOSTS = (ADDRESS, "localhost")  # as browsers of this machine call it; any other name is a page elsewhere that asks

log = logging.getLogger(__name__)


def define_flags(flag):
    flag.arguments("RUN...")
    flag.number("port", "Of the address; 0 is one that is free.", 8642)


def main(wanted):
    named = wanted.arguments
    if not named:
        raise UserError("No folder is given; name that of a run, as in `barlow-jax watch runs/photos`.")
    if not 0 <= wanted.port < 2**16:
        raise UserError(f"--port is {wanted.port}; it must be 0 to 65535.")
    far = [one for one in named if reading.is_address(one)]
    local = [reading.files(one) if one in far else one for one in named]
    for folder in local:
        if not pathlib.Path(folder).expanduser().is_dir():
            raise UserError(f"{folder} is no folder; give that of a run, or one above several.")
    if far:
        threading.Thread(target=follow, args=(far,), daemon=True).start()
    with opened(local, wanted.port) as server:
        print(f"http://{ADDRESS}:{server.server_port}/ shows {', '.join(map(str, named))}; Ctrl-C ends it.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def follow(addresses):
    """Brings down what has changed in buckets, every FRESH seconds; what fails is said, and tried again."""
    while True:
        time.sleep(FRESH)
        for address in addresses:
            try:
                reading.files(address)
            except UserError as error:
                log.warning("%s is shown as it was: %s", address, error)


def opened(named, port):
    """The server, which answers when it is told to `serve_forever`; a port that is in use is a UserError."""
    shown = Shown(named)
    try:
        return Server((ADDRESS, port), type("Handler", (Handler,), {"shown": shown}))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "in use" if error.errno == errno.EADDRINUSE else "not free to use"
        raise UserError(f"Port {port} is {why}; give another, such as --port=0 for any that is free.") from error


class Shown:
    """The page of some folders and its data, made again when a file in them has changed."""

    def __init__(self, named):
        self._named, self._lock = named, threading.Lock()
        self._stamp, self._made = None, ("", b"")

    def page(self):
        """The page, as bytes."""
        return page.page(self._named, live=True).encode()

    def data(self, known):
        """(number of this state, JSON), or (number, None) where the browser has this state already."""
        with self._lock:
            seen = folders.stamp(self._named)
            if seen != self._stamp:
                content = page.content(self._named)
                number = f"{hash(seen) & (2**48 - 1):x}"
                self._made = number, json.dumps(content | {"stamp": number}, allow_nan=False).encode()
                self._stamp = seen
            number, made = self._made
        return number, None if number == known else made


class Server(http.server.ThreadingHTTPServer):
    """Says nothing of a browser that went away in the middle of an answer, as each does when its page is closed."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers / and /data alone."""

    shown: Shown

    def do_GET(self):
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in HOSTS:
            return self._answer(403, "text/plain", b"This address is for browsers of its own machine.\n")
        path, _, known = self.path.partition("?")
        try:
            if path == "/":
                return self._answer(200, "text/html; charset=utf-8", self.shown.page())
            if path == "/data":
                made = self.shown.data(known)[1]
                return self._answer(204 if made is None else 200, "application/json", made or b"")
        except UserError as error:  # of a file that is damaged now, and may not be at the next question
            return self._answer(503, "text/plain; charset=utf-8", f"{error}\n".encode())
        return self._answer(404, "text/plain", b"There is only / here.\n")

    def _answer(self, status, kind, body):
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")):
            self.send_header(name, value)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form, *values):
        """Questions of browsers are nothing to be told of."""


if __name__ == "__main__":
    launch.run(main, define_flags)
