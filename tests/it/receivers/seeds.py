"""The same receivers for Python. What is special to JavaScript, SendComms' second look at the body, is left to it: here the
bytes that came are signed, which must be the same."""
import base64, hashlib, hmac, json, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

secrets, results, lock = json.loads(sys.argv[1]), {}, threading.Lock()


def sign(key, message):
    return hmac.new(key, message, hashlib.sha256)


def securesmtp(body, headers, secret):
    stamp = headers["svix-timestamp"]
    if abs(time.time() - int(stamp)) > 300:
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    wanted = base64.b64encode(sign(key, f"{headers['svix-id']}.{stamp}.".encode() + body).digest()).decode()
    given = [part.split(",", 1) for part in headers["svix-signature"].split(" ")]
    return any(version == "v1" and hmac.compare_digest(signature, wanted) for version, signature in given)


def nexuspromail(body, headers, secret):
    return hmac.compare_digest(sign(secret.encode(), body).hexdigest(), headers["x-nexuspromail-signature"])


def splashify(body, headers, secret):
    return hmac.compare_digest("sha256=" + sign(secret.encode(), body).hexdigest(), headers["x-splashify-signature"])


def sendcomms(body, headers, secret):
    return hmac.compare_digest("sha256=" + sign(secret.encode(), body).hexdigest(), headers["x-sendcomms-signature"])


def zmailer(body, headers, secret):
    parts = dict(part.split("=", 1) for part in headers["x-zmailer-signature"].split(","))
    wanted = sign(secret.encode(), parts["t"].encode() + b"." + body).hexdigest()
    return hmac.compare_digest(wanted, parts["v1"]) and abs(time.time() - int(parts["t"])) <= 300


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        with lock:
            self.answer(200, json.dumps(results).encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        name = self.path[1:]
        with lock:
            told = results.setdefault(name, {"good": 0, "bad": 0, "events": {}})
            try:
                good = globals()[name](body, self.headers, secrets[name])
            except Exception as error:
                good, told["error"] = False, repr(error)
            told["good" if good else "bad"] += 1
            parsed = json.loads(body)
            event = parsed.get("type") or parsed.get("event") or parsed.get("eventType")
            told["events"][event] = told["events"].get(event, 0) + 1
        self.answer(200 if good else 401)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_address[1], flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
server.serve_forever()
