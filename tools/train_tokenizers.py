# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers of every kind that is read here, trained with the package `tokenizers` on texts."""
import io
import json
import tempfile

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPM = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ODD_TOKENS = [AddedToken("<|sep|>", lstrip=True, special=True), AddedToken("<|end|>", rstrip=True, special=True),
              AddedToken("word", single_word=True, normalized=False), AddedToken("Norm", normalized=True),
              AddedToken("foo_bar", normalized=True), AddedToken("<|im_start|>", special=True),
              AddedToken("  ", normalized=False)]


def charsmap():
    """A table of replacements as SentencePiece compiles it, of single characters and of sequences."""
    rules = {"A": "a", "B": "bb", "\u00e9": "e", "e\u0301": "e", "\ufb01": "fi", "\u3000": " ", "\u200b": "", "\u2460": "(1)",
             "\u1112\u1161": "\ud558", "\U0001f44d\U0001f3fd": "+1"}
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        for source, target in rules.items():
            file.write("\t".join(" ".join(f"{ord(c):X}" for c in text) for text in (source, target)) + "\n")
        file.flush()
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["abcdefgh"] * 20), model_writer=model, vocab_size=12, hard_vocab_limit=False,
            normalization_rule_tsv=file.name, minloglevel=2)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    from transformers.utils import sentencepiece_model_pb2_new as protocol
    proto = protocol.ModelProto()
    proto.ParseFromString(processor.serialized_model_proto())
    return proto.normalizer_spec.precompiled_charsmap


def changed(tokenizer, change):
    layout = json.loads(tokenizer.to_str())
    change(layout)
    return Tokenizer.from_str(json.dumps(layout))


def spm_decoder(strips=True):
    steps = [decoders.Replace(SPM, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] if strips else steps)


def bpe(texts, size, *, normalizer=None, pre_tokenizer=None, byte_fallback=True, fuse_unk=True, trained_by=None):
    """SentencePiece's BPE: merges found between words that begin with the mark of a space."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=byte_fallback, fuse_unk=fuse_unk))
    tokenizer.pre_tokenizer = trained_by or pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>"] + (BYTES if byte_fallback else [])
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, limit_alphabet=70, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer

    def keep(layout):  # bytes are no added tokens
        layout["added_tokens"] = [token for token in layout["added_tokens"] if token["content"] not in BYTES]
    return changed(tokenizer, keep)


def unigram(texts, size, *, normalizer=None, pre_tokenizer=None, byte_fallback=False):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    special = ["<pad>", "</s>", "<unk>"] + (BYTES if byte_fallback else [])
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False)
    # Its trainer wants room for all characters.
    tokenizer.train_from_iterator(("".join(c for c in text if " " <= c < "\x7f" or c in "éï") for text in texts), trainer)

    def keep(layout):
        layout["model"]["byte_fallback"] = byte_fallback
        layout["added_tokens"] = [token for token in layout["added_tokens"] if token["content"] not in BYTES]
    return changed(tokenizer, keep)


def spm_merges(vocab, scores):
    """Each cut of a token into two others, by score, as transformers' converter of SentencePiece has them."""
    cuts = []
    for token, score in scores.items():
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        cuts += [(-score, vocab[token], vocab[left], vocab[right], left, right) for left, right in pairs
                 if left in vocab and right in vocab]
    return [(left, right) for *_, left, right in sorted(cuts)]


def scored(tokenizer):
    """The same tokenizer with merges by score, where the score of a token is how late it was found; and the scores."""
    layout = json.loads(tokenizer.to_str())
    model = layout["model"]
    special = {token["content"] for token in layout["added_tokens"]} | set(BYTES)
    found = {"".join(merge): -float(rank) for rank, merge in reversed(list(enumerate(model["merges"])))}
    scores = {token: found.get(token, -1e6 - id) for token, id in model["vocab"].items() if token not in special}
    model["merges"] = spm_merges({t: i for t, i in model["vocab"].items() if t not in special}, scores)
    return Tokenizer.from_str(json.dumps(layout)), scores


def llama_cpp_ids(text, vocab, scores):
    """llama.cpp's tokens of a text without special tokens: of all neighbours those merge that make the token of the
    highest score, and of equal ones the leftmost."""
    symbols = list(SPM + text.replace(" ", SPM)) if text else []
    while True:
        made = [(-scores[a + b], at) for at, (a, b) in enumerate(zip(symbols, symbols[1:])) if a + b in scores]
        if not made:
            break
        at = min(made)[1]
        symbols[at:at + 2] = [symbols[at] + symbols[at + 1]]
    return [id for symbol in symbols for id in
            ([vocab[symbol]] if symbol in scores else [vocab[f"<0x{byte:02X}>"] for byte in symbol.encode()])]


def with_tokens(tokenizer, tokens, decoder):
    tokenizer.add_tokens(tokens)
    tokenizer.decoder = decoder
    return tokenizer


def families(texts, size=600):
    """Yields names and tokenizers; `texts` is called for the texts to train on."""
    legacy = normalizers.Sequence([normalizers.Prepend(SPM), normalizers.Replace(" ", SPM)])
    yield "llama2", with_tokens(bpe(texts(), size, normalizer=legacy), ODD_TOKENS, spm_decoder())
    first = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    yield "mistral3", with_tokens(bpe(texts(), size, pre_tokenizer=first), ODD_TOKENS, spm_decoder())
    gemma = bpe(texts(), size, normalizer=normalizers.Replace(" ", SPM),
                pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"))
    yield "gemma", with_tokens(gemma, ODD_TOKENS, spm_decoder(strips=False))
    words = pre_tokenizers.Metaspace()
    plain = bpe(texts(), size, pre_tokenizer=words, byte_fallback=False, normalizer=normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]))
    yield "unknown", with_tokens(plain, ODD_TOKENS, decoders.Metaspace())
    split = bpe(texts(), size, byte_fallback=False, fuse_unk=False, trained_by=pre_tokenizers.Whitespace(),
                pre_tokenizer=pre_tokenizers.Sequence([
                    pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("merged_with_next"),
                    pre_tokenizers.Digits(False), pre_tokenizers.Split(Regex("[aeiou]+"), "merged_with_previous")]))
    yield "split", with_tokens(split, ODD_TOKENS, None)
    t5 = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    table = normalizers.Sequence([normalizers.Precompiled(charsmap()), normalizers.Strip(False, True),
                                  normalizers.Replace(Regex(" {2,}"), SPM)])
    yield "t5", with_tokens(unigram(texts(), size, normalizer=table, pre_tokenizer=t5), ODD_TOKENS, decoders.Metaspace())
    albert = normalizers.Sequence([normalizers.Nmt(), normalizers.Replace("``", '"'), normalizers.NFKC(),
                                   normalizers.Strip(False, True), normalizers.Replace(Regex(" {2,}"), SPM)])
    yield "albert", with_tokens(unigram(texts(), size, normalizer=albert, pre_tokenizer=pre_tokenizers.Metaspace(
        prepend_scheme="first")), ODD_TOKENS, decoders.Metaspace(prepend_scheme="first"))
    bytes_ = unigram(texts(), size, byte_fallback=True, normalizer=normalizers.Strip(True, False),
                     pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never"))
    yield "unigram_bytes", with_tokens(bytes_, ODD_TOKENS, decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never"), decoders.Fuse()]))
    inner = bpe(texts(), size, byte_fallback=True, trained_by=pre_tokenizers.ByteLevel(),
                pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=True),
                                                       pre_tokenizers.Split("e", "contiguous", invert=True)]))
    yield "inner_bytes", with_tokens(inner, ODD_TOKENS, decoders.ByteLevel())


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(texts, size, pattern=None, normalizer=None):
    """Byte-level BPE, its words cut by a pattern; by GPT-2's own without one."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pattern == LLAMA3))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False) if pattern is None else (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_level_families(texts, size=600):
    """The same as families() for byte-level BPE with the patterns of GPT-2, Llama 3 and Qwen 2."""
    yield "gpt2", byte_level(texts(), size)
    yield "llama3", byte_level(texts(), size, LLAMA3)
    yield "qwen2", byte_level(texts(), size, QWEN2, normalizers.NFC())
