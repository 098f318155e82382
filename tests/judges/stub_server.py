#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A server on loopback with OpenAI's chat completions, whose replies follow a script.

    stub_server.py REPLY…    prints its port for each line of stdin, and ends with it

The n-th request gets the n-th REPLY, later ones the last: `good` names the answer that holds the
word good, `status:CODE`, `slow:SECONDS` before a verdict, `drop` closes the connection, `body:TEXT` is the
whole body, anything else is what the model says.
"""
import http.server
import json
import sys
import threading
import time


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def good_one(request):
    a, b = request["messages"][-1]["content"].split("[Answer B]")
    return "tie" if ("good" in a) == ("good" in b) else "A" if "good" in a else "B"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        requests, replies = self.server.requests, self.server.replies
        requests.append((self.path, dict(self.headers), request))
        reply = replies[min(len(requests), len(replies)) - 1]
        kind, _, value = reply.partition(":")
        if kind == "drop":
            return self.close_connection
        if kind == "slow":
            time.sleep(float(value))
        self.send_response(int(value) if kind == "status" else 200)
        self.end_headers()
        verdict = good_one(request) if kind in ("good", "slow") else reply
        body = value if kind == "body" else completion(verdict)
        try:
            self.wfile.write(body.encode())
        except OSError:
            pass  # the other side did not wait
        return None

    def log_message(self, *_):
        pass


def start(replies):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.replies, server.requests = replies, []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


if __name__ == "__main__":
    stub = start(sys.argv[1:])
    for _ in sys.stdin:
        print(stub.server_address[1], flush=True)
