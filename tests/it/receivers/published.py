"""What the published library `standardwebhooks` says, of the same lines as for Node."""
import base64, json, sys
from standardwebhooks.webhooks import Webhook

for line in sys.stdin:
    post = json.loads(line)
    body = base64.b64decode(post["body"]).decode()
    assert Webhook(post["secret"]).verify(body, post["headers"]) == json.loads(body)
    try:
        Webhook(post["secret"]).verify(body + " ", post["headers"])
        print("a changed body is taken")
    except Exception:
        print("ok", flush=True)
