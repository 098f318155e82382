#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The demo's reward: a short, direct answer in plain prose.

    "feedback": {"reward": ["python3", "examples/demo/reward.py"]}

Each term is a rule that a reader can check by eye, worth 0 to 1, and the reward is their mean; an
answer without a word gets 0. A word is a run of letters, digits and apostrophes. A sentence ends at
`.`, `!` or `?` in front of white space and at the end of a line, and has two words or more.

Reads one line of JSON a question, {"prompt": …, "completion": …}, and answers each with one line,
{"reward": number}.
"""
import json
import re
import sys

FEWEST_WORDS = 8
MOST_SENTENCES = 3
SHORTEST_CONTENT_WORD = 4
STEM = 5

FILLERS = ["absolutely", "as an ai", "certainly", "great question", "hello", "here are", "here is",
           "here's", "hi", "i am", "i can", "i'd be", "i'm", "of course", "sure", "that's a", "yes"]

FUNCTION_WORDS = set(
    "about after before between contain describe does during explain from give have into many name "
    "never only short should some somebody that their them they this through what when where which "
    "while with without write your".split())

# A closing quotation mark or bracket may follow the mark.
SENTENCE_END = r"""[.!?]["')]*"""


def words_of(text):
    return re.findall(r"(?:[^\W_]|')+", text.lower())


def lines_of(text):
    return [line.strip() for line in text.split("\n")]


def complete(answer):
    """1 if its end is a sentence's."""
    return float(bool(re.search(SENTENCE_END + r"\Z", answer.strip())))


def concise(answer):
    """1 for eight words or more in one to three sentences; a third less for each sentence more."""
    if len(words_of(answer)) < FEWEST_WORDS:
        return 0.0
    parts = [part for line in lines_of(answer)
             for part in re.split(rf"(?:(?<=[.!?])|(?<=[.!?][\"')]))\s", line)]
    sentences = sum(len(words_of(part)) >= 2 for part in parts)
    return max(0.0, 1 - max(0, sentences - MOST_SENTENCES) / 3)


def plain(answer):
    """1 without Markdown; half less for each line that is a list item, heading or table row, or
    holds `**` or a backquote."""
    marked = sum(bool(re.match(r"\d+[.)] |[-*+>] |[#|•]", line)) or "**" in line or "`" in line
                 for line in lines_of(answer))
    return max(0.0, 1 - marked / 2)


def direct(answer):
    """1 unless it opens with a filler such as "Sure", "Of course", "I'm" or "Here is"."""
    words = words_of(answer)
    return float(not any(words[:len(filler.split())] == filler.split() for filler in FILLERS))


def on_topic(question, answer):
    """1 if it mentions at least half of the question's content words (four letters or more, no
    function words, recognized by their first five letters); in proportion below that."""
    stems = {word[:STEM] for word in words_of(question)
             if len(word) >= SHORTEST_CONTENT_WORD and word not in FUNCTION_WORDS}
    if not stems:
        return 1.0
    words = words_of(answer)
    mentioned = sum(any(word.startswith(stem) for word in words) for stem in stems)
    return min(1.0, 2 * mentioned / len(stems))


def varied(answer):
    """Share of its runs of three words that are no repetition of an earlier one."""
    words = words_of(answer)
    runs = list(zip(words, words[1:], words[2:]))
    return len(set(runs)) / len(runs) if runs else 1.0


def terms(question, answer):
    if not words_of(answer):
        return dict.fromkeys(["complete", "concise", "plain", "direct", "on topic", "varied"], 0.0)
    return {"complete": complete(answer), "concise": concise(answer), "plain": plain(answer),
            "direct": direct(answer), "on topic": on_topic(question, answer),
            "varied": varied(answer)}


def reward(question, answer):
    values = terms(question, answer).values()
    return sum(values) / len(values)


def question_of(prompt):
    """What the user asks in a prompt of SmolLM2's chat format; any other prompt as it is."""
    return prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]


def main():
    for line in sys.stdin:
        asked = json.loads(line)
        value = reward(question_of(asked["prompt"]), asked["completion"])
        print(json.dumps({"reward": value}), flush=True)


if __name__ == "__main__":
    main()
