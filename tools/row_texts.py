# SPDX-License-Identifier: Apache-2.0
"""Texts of files: lines, or in .jsonl every text in a row; .gz too."""
import gzip
import json


def texts_in(value):
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts_in(part)


def texts_of(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        for line in file:
            if ".jsonl" in path.name:
                yield from (text.encode() for text in texts_in(json.loads(line)))
            else:
                yield line


def real_lines(path):
    """The texts of a file and their lines, each once."""
    texts = [text.decode("utf-8", "replace") for text in texts_of(path)]
    return list(dict.fromkeys(line for text in texts for line in (text, *text.split("\n"))))
