#!/usr/bin/env python3
"""The ClickHouse engine in this process, behind its HTTP interface as far as Sendtrail and its tests use it.

One query at a time. A query stands in ?query=, or in the body; when both are there the body is the data of an INSERT.
Other URL parameters, and the fields of a form, are settings, `param_x` the values of `{x:Type}` in the query. Not meant
for production.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import threading
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from chdb.session import Session

RESERVED = {"query", "database", "default_format", "user", "password", "session_id", "query_id", "compress", "decompress",
            "quota_key"}
INSERT = re.compile(r"^\s*INSERT\s", re.IGNORECASE)
FORMAT = re.compile(r"\sFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
CODE = re.compile(r"Code: (\d+)")


def quote(value):
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def fields(content_type, body):
    """The fields of a form, byte for byte."""
    message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    name = lambda part: part.get_param("name", header="content-disposition")
    return {name(part): part.get_payload(decode=True).decode() for part in message.get_payload()}


class Engine:
    def __init__(self, folder):
        self.session = Session(folder)
        self.lock = threading.Lock()
        self.folder = tempfile.mkdtemp()

    def run(self, query, body, parameters):
        with self.lock:
            data = None
            database = parameters.get("database", "default")
            settings = {name: value for name, value in parameters.items() if name not in RESERVED}
            try:
                self.session.query(f"USE {database}")
                for name, value in settings.items():
                    self.session.query(f"SET {name} = {quote(value)}")
                form = parameters.get("default_format", "TabSeparated")
                if INSERT.match(query):
                    found = FORMAT.search(query)
                    if found:
                        data = os.path.join(self.folder, "insert")
                        with open(data, "wb") as file:
                            file.write(body)
                        query = f"{query[:found.start()]} FROM INFILE {quote(data)} FORMAT {found.group(1)}"
                else:
                    found = FORMAT.search(query)
                    if found:
                        query, form = query[: found.start()], found.group(1)
                    if body:
                        query += "\n" + body.decode()
                return self.session.query(query, form).bytes() or b""
            finally:
                for name in settings:
                    if not name.startswith("param_"):
                        self.session.query(f"SET {name} = DEFAULT")
                if data:
                    os.remove(data)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status, body, code=None):
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-ClickHouse-Exception-Code", code)
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def answer(self):
        address = urlsplit(self.path)
        body = self.body()
        if address.path == "/ping":
            return self.reply(200, b"Ok.\n")
        parameters = dict(parse_qsl(address.query, keep_blank_values=True))
        if self.headers.get_content_type() == "multipart/form-data":
            parameters.update(fields(self.headers["Content-Type"], body))
            body = b""
        query = parameters.get("query")
        if query is None:
            query, body = body.decode(), b""
        try:
            self.reply(200, self.server.engine.run(query, body, parameters))
        except Exception as error:  # Whatever the engine says is an answer.
            text = str(error)
            code = CODE.search(text)
            self.reply(500, text.encode(), code.group(1) if code else "1002")

    def log_message(self, *_):
        pass


def end_with_stdin(folder):
    sys.stdin.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int, default=8123)
    options.add_argument("--data", default="./clickhouse-data")
    options.add_argument("--while-stdin-is-open", action="store_true")
    options = options.parse_args()
    os.makedirs(options.data, exist_ok=True)
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.engine = Engine(options.data)
    if options.while_stdin_is_open:
        threading.Thread(target=end_with_stdin, args=[options.data], daemon=True).start()
    server.serve_forever()


main()
