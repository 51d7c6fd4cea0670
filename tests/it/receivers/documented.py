# What follows the verification of docs/WEBHOOKS.md for Python: one JSON object a line, the verdict on each.
import json
import sys

for line in sys.stdin:
    post = json.loads(line)
    raw, of = base64.b64decode(post["body"]), (post["dialect"], post["secret"], post["headers"])
    print("ok" if verify(*of, raw) and not verify(*of, raw + b" ") else "wrong", flush=True)
