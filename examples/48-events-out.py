"""Events out: CloudEvents to a function, and to a URL as signed webhooks; here to a small server that checks them."""

import asyncio
import base64
import hashlib
import hmac
import json
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from treadle import EventCallback, Webhook, connect, step, workflow

KEY = base64.b64encode(b"a secret of at least 24 bytes").decode()


class Receiver(BaseHTTPRequestHandler):
    """What another program does with a webhook."""

    busy = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + body
        made = base64.b64encode(hmac.digest(base64.b64decode(KEY), signed, hashlib.sha256)).decode()
        good = hmac.compare_digest(self.headers["webhook-signature"], f"v1,{made}")
        # It is busy once; then the same event comes again.
        status, Receiver.busy = (503 if Receiver.busy else 204), False
        event = json.loads(body)
        print("webhook", event["type"], event["data"].get("at", ""), "signed" if good else "forged", status)
        self.send_response(status)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@step
async def pack(order: str) -> str:
    return f"{order} is packed"


@workflow
def ship(order: str) -> str:
    return pack.bind(order)


async def count(event: dict[str, Any]) -> None:
    print("callback", event["type"], event["subject"])


async def main() -> None:
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hook = Webhook(f"http://127.0.0.1:{server.server_port}/", secrets=[f"whsec_{KEY}"], name="shop")
    with tempfile.TemporaryDirectory() as folder:
        async with connect(f"sqlite:///{folder}/shop.db", events=[hook]) as app:
            await (await app.start(ship, "order 7", id="order-7")).result()
            await app.events_delivered()

        # Another sink, that wants to know what was before it was there.
        ends = EventCallback(count, name="ends", kinds=["run_settled"], history=True)
        async with connect(f"sqlite:///{folder}/shop.db", events=[ends]) as app:
            await app.events_delivered()
    server.shutdown()
    server.server_close()


asyncio.run(main())
