"""A bucket on loopback, for s3:// and gs://: what the library asks of either, with conditions, and faults on order.

    with bucket_server.serving() as server:         # server.address("s3"), server.environment()
        server.faults.append(("PUT", "manifest.json", "503"))   # the next such request; "*" for every one

Both clouds speak nearly the same XML. Written by the clouds' documentation of conditional writes: If-None-Match and
If-Match of S3, x-goog-if-generation-match of Google.
"""

import contextlib
import hashlib
import http.server
import re
import sys
import threading
import time
import urllib.parse
from xml.sax.saxutils import escape, unescape

BUCKET = "runs"
ANSWERS = {"503": 503, "403": 403, "507": 507}


class Server(http.server.ThreadingHTTPServer):
    """Attributes: contents {name: (bytes, generation)}; faults; log of (method, name); gone: there is no bucket."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents, self.parts, self.faults, self.log = {}, {}, [], []
        self.gone, self.generation, self.lock, self.slowness = False, 100, threading.Lock(), 0.0

    def environment(self):
        url = f"http://127.0.0.1:{self.server_port}"
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": url, "STORAGE_EMULATOR_HOST": url, **keys}

    def fault(self, method, name):
        for one in self.faults:
            if one[0] == method and one[1] in name:
                if one[-1] != "*":
                    self.faults.remove(one)
                return one[2]
        return ""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # of a client that was killed
            super().handle_error(request, client_address)

    def put(self, name, content):
        self.generation += 1
        self.contents[name] = content, self.generation


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _any(self):
        split = urllib.parse.urlsplit(self.path)
        bucket, _, name = urllib.parse.unquote(split.path).lstrip("/").partition("/")
        query = dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        server.log.append((self.command, name))
        fault = server.fault(self.command, name)
        if server.gone or bucket != BUCKET:
            return self.answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        time.sleep(server.slowness)
        if fault in ANSWERS:
            return self.answer(ANSWERS[fault], b"<Error><Code>no</Code></Error>")
        if fault == "slow":
            time.sleep(1.5)
        with server.lock:
            status, content, headers = self.done(name, query, body)
        if fault == "lost":  # done, and nobody is told
            self.close_connection = True
            return self.connection.close()
        if fault == "short":
            content = content[:-1]
        if fault == "dropped":  # said to be stored, and it is not
            server.contents.pop(name, None)
        return self.answer(status, content, cut=fault == "cut", **headers)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any

    def done(self, name, query, body):
        return {"GET": self.get, "HEAD": self.get, "PUT": self.put, "POST": self.post, "DELETE": self.delete}[
            self.command
        ](name, query, body)

    def get(self, name, query, body):
        if not name:
            return 200, self.listing(query), {}
        if name not in self.server.contents:
            return 404, b"<Error><Code>NoSuchKey</Code></Error>", {}
        content = self.server.contents[name][0]
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not span:
            return 200, content, self.told(name)
        part = content[int(span[1]) : int(span[2]) + 1]
        return 206, part, {"Content-Range": f"bytes {span[1]}-{span[2]}/{len(content)}", **self.told(name)}

    def told(self, name):
        content, generation = self.server.contents[name]
        tag = hashlib.md5(content + str(generation).encode()).hexdigest()
        return {"ETag": f'"{tag}"', "x-goog-generation": str(generation)}

    def put(self, name, query, body):
        if "partNumber" in query:
            self.server.parts[query["uploadId"], int(query["partNumber"])] = body
            return 200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}
        there = self.told(name) if name in self.server.contents else {"ETag": None, "x-goog-generation": "0"}
        wrong = (
            ("If-None-Match" in self.headers and there["ETag"] is not None)
            or ("If-Match" in self.headers and self.headers["If-Match"] != there["ETag"])
            or self.headers.get("x-goog-if-generation-match", there["x-goog-generation"]) != there["x-goog-generation"]
        )
        if wrong:
            return 412, b"<Error><Code>PreconditionFailed</Code></Error>", {}
        self.server.put(name, body)
        return 200, b"", self.told(name)

    def post(self, name, query, body):
        if "uploads" in query:
            upload = f"u{len(self.server.log)}"
            text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            return 200, text.encode(), {}
        if "uploadId" in query:
            mine = sorted(one for one in self.server.parts if one[0] == query["uploadId"])
            self.server.put(name, b"".join(self.server.parts.pop(one) for one in mine))
            tag = self.told(name)["ETag"]
            text = f"<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
            return 200, text.encode(), self.told(name)
        keys = re.findall(r"<Key>(.*?)</Key>", body.decode())  # POST ?delete of S3
        for key in keys:
            self.server.contents.pop(unescape(key), None)
        told = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        return 200, f"<DeleteResult>{told}</DeleteResult>".encode(), {}

    def delete(self, name, query, body):
        if "uploadId" in query:
            return 204, b"", {}
        return (204 if self.server.contents.pop(name, None) else 404), b"", {}

    def listing(self, query):
        prefix, cut = query.get("prefix", ""), query.get("delimiter")
        objects, folders = [], set()
        for name in sorted(self.server.contents):
            if name.startswith(prefix):
                rest = name[len(prefix) :]
                if cut and cut in rest:
                    folders.add(prefix + rest.partition(cut)[0] + cut)
                else:
                    tag, size = self.told(name)["ETag"], len(self.server.contents[name][0])
                    when = "<LastModified>2026-10-01T00:00:00.000Z</LastModified>"
                    objects.append(
                        f"<Contents><Key>{escape(name)}</Key>{when}<ETag>{escape(tag)}</ETag><Size>{size}</Size></Contents>"
                    )
        below = "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders))
        return f"<ListBucketResult>{''.join(objects)}{below}</ListBucketResult>".encode()

    def answer(self, status, content, cut=False, **headers):
        self.send_response(status)
        for key, value in {"Last-Modified": "Thu, 01 Oct 2026 00:00:00 GMT", **headers}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection |= cut

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":  # for hands: prints the environment, and serves until it is killed
    with serving() as forever:
        print("\n".join(f"export {name}={value}" for name, value in forever.environment().items()), flush=True)
        threading.Event().wait()
