# SPDX-License-Identifier: Apache-2.0
"""Texts that tokenizers disagree on: spaces, digits, marks, scripts, emoji, code, special tokens."""
import random
import unicodedata

WORDS = (
    "the quick brown fox don't I'LL we've they'd it's you're I'm o'clock naïve café Ångström ſ's 'ſ "
    "Straße ΑΛΦΑ привет мир 你好世界 東京都に住んでいます 안녕하세요 สวัสดี नमस्ते שלום עולם مرحبا بالعالم "
    "e\u0301 o\u0302\u0323 \u1112\u1161\u11ab ﬁ ﬀ ǆ Ⅷ ½ ² ٣٤ १२३ 𝟘𝟙 ⑫ 一二三 "
    "👩‍👩‍👧 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ☃️ 😀😀😀 \u200b\u200d\ufeff \u202eabc\u202c \u0000 \u0007 \u001b[0m \u0085 \u180e "
    "\ufffd \ue000 \U0010ffff \uffff \U000e0041 ℵ K Å ∑∫√ €£¥ «quoted» “curly” … — – ‐ "
    "x=1; if(a&&b||!c){return -1;} foo_bar __init__ C++20 std::vector<int> /*c*/ #include 0xFFu 1e-9 3.14159 "
    "2024-02-29T12:34:56Z 192.168.0.1 1,000,000 12345678901234567890 $99.99 50% a@b.org https://x.org/?q=1&r=%20 "
    "<|im_start|> <|im_end|> <|endoftext|> <|im_start |> <|im_ <| |> <mask> </s> <s> [INST] <repo_name>x <file_sep>"
).split(" ")
SPACES = [" ", "  ", "   ", " " * 7, " " * 33, "\t", "\t\t", "\n", "\n\n", "\r\n", " \n", "\n ", "\n\n  \n", "\u00a0",
          "\u2003", "\u2028", "\u3000", "\u0085", "\u000b", "\u000c", "\u1680", "\u180e", "\u200b", ""]


def random_character(rng):
    """Assigned since Unicode 3.2: Oniguruma and each PCRE2 follow versions of their own."""
    while True:
        character = any_character(rng)
        if unicodedata.ucd_3_2_0.category(character) != "Cn":
            return character


def any_character(rng):
    low, high = rng.choice([(0, 0x7F), (0x80, 0x2FF), (0x300, 0x36F), (0x370, 0x1FFF), (0x2000, 0x2BFF), (0x2E80, 0x9FFF),
                            (0xAC00, 0xD7A3), (0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x2FFFF), (0xE0000, 0x10FFFF)])
    return chr(rng.randint(low, high))


def hostile_texts(count, seed):
    """`count` texts: first each word and each run of spaces alone, then random mixtures."""
    rng = random.Random(seed)
    texts = ["", " "] + [s * n for s in SPACES if s for n in (1, 2, 17)] + WORDS + [" " + w for w in WORDS]
    texts += [f"{a}{s}{b}" for a, b in (("a", "b"), ("1", "2"), (".", ","), ("", "x"), ("x", "")) for s in SPACES]
    while len(texts) < count:
        kind = rng.random()
        if kind < 0.6:
            text = "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randint(1, 25)))
        elif kind < 0.8:
            text = "".join(random_character(rng) for _ in range(rng.randint(1, 60)))
        elif kind < 0.9:
            text = "".join(rng.choice("aA1 '.\n\t\u0301é中") for _ in range(rng.randint(1, 80)))
        else:
            text = rng.choice(WORDS) * rng.randint(2, 60)
        texts.append(text)
    return texts[:count]


def token_texts(count, seed, tokens):
    """Texts that glue tokens, marks of spaces and byte tokens to words and to each other."""
    rng = random.Random(seed)
    glue = [*tokens, *tokens, "\u2581", "\u2581\u2581", "\u2581word", "words", "Norm\u0301", "<0x41>", "<0x+1>", "<unk", "``"]
    return ["".join(rng.choice(rng.choice((glue, glue, WORDS, SPACES))) for _ in range(rng.randint(2, 9)))
            for _ in range(count)]


def broken_bytes(count, seed):
    """Bytes that are mostly no UTF-8."""
    rng = random.Random(seed)
    fixed = [b"\x80", b"\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x82A", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80",
             b"\xff\xfe", b"abc\xe2\x28\xa1def", b"\xf0\x9f\x98\x80\xf0\x9f", b"\xe0\x80\x80", b"\xf8\x88\x80\x80\x80"]
    result = list(fixed)
    while len(result) < count:
        good = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6))).encode()
        bad = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(bad))
            if rng.random() < 0.5:
                bad[at] = rng.randrange(256)
            else:
                del bad[at]
                bad = bad or bytearray(b"\xe2")
        result.append(bytes(bad))
    return result[:count]
