#!/usr/bin/env python3
"""moto's S3 in this process, with a bucket that is there from the start, and an option to fail half of the time."""

import argparse
import os
import random
import shutil
import sys
import threading

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from moto.core import DEFAULT_ACCOUNT_ID
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Response


# Times in a row that the same may fail: a client that gives up after some seconds must be able to rely on something.
IN_A_ROW = 5


class Unreliable:
    """Does half of what it is asked and says so; the rest is not done, or done and not said, or said by half."""

    def __init__(self, app):
        self.app = app
        self.chance = random.Random(1)
        self.failed = {}

    def __call__(self, environ, start_response):
        of = (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"])
        fate = self.chance.random()
        if fate < 0.5 or self.failed.get(of, 0) >= IN_A_ROW:
            self.failed.pop(of, None)
            return self.app(environ, start_response)
        self.failed[of] = self.failed.get(of, 0) + 1
        if fate < 0.7:
            return Response("try again", status=503 if fate < 0.6 else 429)(environ, start_response)
        answer = Response.from_app(self.app, environ, buffered=True)
        if fate < 0.9:
            return Response("something went wrong", status=500)(environ, start_response)
        return self.cut(answer, start_response)

    def cut(self, answer, start_response):
        """The headers of an answer, half of its body, and then the connection ends."""
        body = answer.get_data()
        start_response(answer.status, answer.headers.to_wsgi_list())
        yield body[: len(body) // 2]
        raise ConnectionError("cut off")


class Handler(WSGIRequestHandler):
    def log(self, *_):
        pass


def end_with_stdin(folder):
    sys.stdin.read()
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int, default=9000)
    options.add_argument("--bucket", default="sendtrail")
    options.add_argument("--data")
    options.add_argument("--unreliable", action="store_true")
    options.add_argument("--while-stdin-is-open", action="store_true")
    options = options.parse_args()
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket(options.bucket, "us-east-1")
    app = DomainDispatcherApplication(create_backend_app)
    if options.unreliable:
        app = Unreliable(app)
    server = make_server("127.0.0.1", options.port, app, threaded=True, request_handler=Handler)
    if options.while_stdin_is_open:
        threading.Thread(target=end_with_stdin, args=[options.data], daemon=True).start()
    server.serve_forever()


main()
