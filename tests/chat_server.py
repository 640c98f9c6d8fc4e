"""A server on a loopback port that speaks the chat-completions schema and keeps what it was asked."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, finish="stop", prompt_tokens=7):
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(text), "total_tokens": prompt_tokens + len(text)}
    message = {"role": "assistant", "content": text}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}


class Server:
    """``reply`` is given the number of the request and its body, and says status, body and headers."""

    def __init__(self):
        self.requests, self.headers, self.lock, self.busy, self.most = [], [], threading.Lock(), 0, 0
        self.listing = 404
        self.reply = lambda number, asked: (200, completion(asked["messages"][-1]["content"].upper()), {})
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two packets, and the second waits 40 ms

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer.lock:
                    outer.requests.append((self.path, asked))
                    outer.headers.append(dict(self.headers.items()))
                    number = len(outer.requests)
                    outer.busy += 1
                    outer.most = max(outer.most, outer.busy)
                try:
                    status, body, headers = outer.reply(number, asked)
                finally:
                    with outer.lock:
                        outer.busy -= 1
                raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                for key, value in {**headers, "content-length": str(len(raw))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(raw)

            def do_GET(self):  # the list of models, which not every server has
                self.send_error(outer.listing)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
