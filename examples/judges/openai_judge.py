#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A judge that asks a server with OpenAI's chat completions, such as vLLM, llama.cpp or Ollama.

    "feedback": {"judge": ["python3", "examples/judges/openai_judge.py",
                           "--url", "http://127.0.0.1:8000/v1", "--model", "NAME"],
                 "workers": 4, "timeout": 120}

Reads a line {"prompt": …, "a": …, "b": …} a question, and answers each with a line {"winner": "a"},
"b" or "tie". Where the server gives no verdict after all tries, the line is {"winner": null,
"error": …}: prefopt counts it as a failure, and `max_failures` says how many a run may have. prefopt
asks in both orders, so this program does not. One question is asked at a time; `workers` runs
several of these programs. `timeout` of prefopt has to be above (retries + 1) timeouts and pauses here.

A request that the server refuses for good (400, 401, 404 …) ends the program, with the reason on
stderr. Needs the standard library alone.
"""
import argparse
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request

INSTRUCTIONS = """\
You compare two answers to the same request. Decide which one is more helpful, correct and clear; \
length by itself is no merit. Reply with one word: A, B or tie."""
QUESTION = "[Request]\n{prompt}\n\n[Answer A]\n{a}\n\n[Answer B]\n{b}\n\nWhich is better: A, B or tie?"
WINNERS = {"a": "a", "b": "b", "tie": "tie"}
MOST_BYTES = 1 << 20  # of a reply


class NoVerdict(Exception):
    """What came in place of a verdict. Another try may bring one."""


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--url", required=True, help="address up to /v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--instructions", help="file with the system message, in place of the own")
    parser.add_argument("--timeout", type=float, default=30, help="seconds a request")
    parser.add_argument("--retries", type=int, default=2, help="further tries of a question")
    parser.add_argument("--pause", type=float, default=1, help="seconds before a retry, doubled each time")
    parser.add_argument("--key-env", help="environment variable that holds the server's key")
    parser.add_argument("--request", type=json.loads, default={"temperature": 0, "max_tokens": 16},
                        help="JSON object of further fields of a request")
    arguments = parser.parse_args()
    if arguments.retries < 0:
        parser.error(f"--retries: expected 0 or more, got {arguments.retries}")
    if arguments.key_env and arguments.key_env not in os.environ:
        parser.error(f"--key-env: expected a variable that is set, got {arguments.key_env}")
    return arguments


def read_verdict(reply):
    """The last line of the reply, which has to be a verdict but for its marks."""
    lines = reply.strip().splitlines() or [""]
    word = re.sub(r"[^a-z]", "", lines[-1].lower())
    for prefix in ("answer", "verdict", "winner"):
        word = word.removeprefix(prefix)
    if word not in WINNERS:
        raise NoVerdict(f"expected A, B or tie, got {reply[:200]!r}")
    return WINNERS[word]


def read_reply(body):
    try:
        reply = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise NoVerdict(f"expected a chat completion, got {body[:200]!r}") from None
    if not isinstance(reply, str):
        raise NoVerdict(f"expected a reply of text, got {reply!r}")
    return reply


class Server:
    def __init__(self, arguments):
        self.url = arguments.url.rstrip("/") + "/chat/completions"
        self.timeout = arguments.timeout
        self.fields = {"model": arguments.model, **arguments.request}
        self.instructions = INSTRUCTIONS
        if arguments.instructions:
            with open(arguments.instructions, encoding="utf-8") as file:
                self.instructions = file.read()
        self.headers = {"Content-Type": "application/json"}
        if arguments.key_env:
            self.headers["Authorization"] = f"Bearer {os.environ[arguments.key_env]}"

    def compare(self, question):
        """Raises NoVerdict."""
        messages = [{"role": "system", "content": self.instructions},
                    {"role": "user", "content": QUESTION.format(**question)}]
        data = json.dumps({**self.fields, "messages": messages}).encode()
        request = urllib.request.Request(self.url, data, self.headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                body = response.read(MOST_BYTES)
        except urllib.error.HTTPError as error:
            if error.code in (408, 409, 429) or error.code >= 500:
                raise NoVerdict(f"expected an answer of {self.url}, got status {error.code}") from None
            sys.exit(f"openai_judge: expected an answer of {self.url}, got {error}: {error.read(200)!r}")
        except (OSError, http.client.HTTPException) as error:  # time-outs and lost connections too
            raise NoVerdict(f"expected an answer of {self.url}, got {error!r}") from None
        return read_verdict(read_reply(body))


def ask(server, question, retries, pause):
    try:
        return {"winner": server.compare(question)}
    except NoVerdict as failure:
        if retries == 0:
            return {"winner": None, "error": str(failure)}
    time.sleep(pause)
    return ask(server, question, retries - 1, 2 * pause)


def main():
    arguments = parse_arguments()
    server = Server(arguments)
    for line in sys.stdin:
        print(json.dumps(ask(server, json.loads(line), arguments.retries, arguments.pause)), flush=True)


if __name__ == "__main__":
    main()
