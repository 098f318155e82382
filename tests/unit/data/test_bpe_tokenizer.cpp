// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/counts.h"
#include "support/errors.h"
#include "support/memory_limit.h"
#include "support/temp_dir.h"

using namespace prefopt;
using nlohmann::json;
using prefopt::testing_support::TempDir;
using Ids = std::vector<std::int64_t>;

namespace {

// a b c 1 space, then what the merges make of them.
BpeVocabulary small_vocabulary() {
  BpeVocabulary vocabulary;
  vocabulary.tokens = {"a",
                       "b",
                       "c",
                       "1",
                       "\xC4\xA0",
                       "ab",
                       "bc",
                       "abc",
                       "\xC4\xA0"
                       "abc"};
  vocabulary.merges = {{"b", "c"}, {"a", "b"}, {"a", "bc"}, {"\xC4\xA0", "abc"}};
  vocabulary.splits = named_word_splits("gpt-2", "test");
  return vocabulary;
}

json small_file() {
  const BpeVocabulary vocabulary = small_vocabulary();
  json vocab;
  for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id) vocab[vocabulary.tokens[id]] = id;
  json merges;
  for (const auto& [left, right] : vocabulary.merges) merges.push_back(left + " " + right);
  return {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens",
       {{{"id", 9},
         {"content", "<s>"},
         {"single_word", false},
         {"lstrip", false},
         {"rstrip", false},
         {"normalized", false},
         {"special", true}}}},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "ByteLevel"},
        {"add_prefix_space", false},
        {"trim_offsets", true},
        {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}},
  };
}

class TokenizerFolder {
 public:
  std::string path() const { return dir_.path(); }
  std::string file() const { return dir_.file("tokenizer.json"); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(dir_.file(name), std::ios::binary) << text;
  }
  std::shared_ptr<const Tokenizer> load(const json& content) const {
    write("tokenizer.json", content.dump());
    return make_tokenizer(path());
  }

 private:
  TempDir dir_;
};

}  // namespace

TEST_CASE("merges go by rank, then from left to right", "[data]") {
  const auto tokenizer = make_bpe_tokenizer(small_vocabulary(), "small");
  CHECK(tokenizer->name() == "small");
  CHECK(tokenizer->vocab_size() == 9);
  CHECK(tokenizer->encode("").empty());
  CHECK(tokenizer->encode("abc") == Ids{7});      // (b c) comes before (a b)
  CHECK(tokenizer->encode("abab") == Ids{5, 5});  // no merge of the two
  CHECK(tokenizer->encode(" abc abca") == Ids{8, 8, 0});
  CHECK(tokenizer->encode("abc1abc") == Ids{7, 3, 7});
  CHECK(tokenizer->decode({8, 3, 5, -1, 9, 1000}) == " abc1ab");
  CHECK(tokenizer->bos_id() == -1);
  CHECK(tokenizer->eos_id() == -1);
  CHECK(tokenizer->pad_id() == -1);
}

TEST_CASE("equal pairs in a row merge from the left", "[data]") {
  BpeVocabulary vocabulary;
  vocabulary.tokens = {"a", "aa", "aaaa"};
  vocabulary.merges = {{"a", "a"}, {"aa", "aa"}};
  vocabulary.splits = named_word_splits("gpt-2", "test");
  const auto tokenizer = make_bpe_tokenizer(vocabulary, "small");
  CHECK(tokenizer->encode("aaa") == Ids{1, 0});
  CHECK(tokenizer->encode("aaaaaaa") == Ids{2, 1, 0});
  CHECK(tokenizer->encode(std::string(4 * 100'000, 'a')) == Ids(100'000, 2));
}

TEST_CASE("bytes without a token are dropped or unknown", "[data]") {
  BpeVocabulary vocabulary = small_vocabulary();
  // The rest of the word merges as if it had been contiguous.
  CHECK(make_bpe_tokenizer(vocabulary, "small")->encode("abxxc") == Ids{7});
  vocabulary.tokens.push_back("<unk>");
  vocabulary.unknown_id = 9;
  CHECK(make_bpe_tokenizer(vocabulary, "small")->encode("abxxc") == Ids{5, 9, 9, 2});
  vocabulary.fuse_unknown = true;
  CHECK(make_bpe_tokenizer(vocabulary, "small")->encode("abxxcx") == Ids{5, 9, 2, 9});
}

TEST_CASE("a word that is a token stays one where merges are ignored", "[data]") {
  BpeVocabulary vocabulary = small_vocabulary();
  vocabulary.tokens.push_back("cab");
  CHECK(make_bpe_tokenizer(vocabulary, "small")->encode("cab") == Ids{2, 5});
  vocabulary.ignore_merges = true;
  CHECK(make_bpe_tokenizer(vocabulary, "small")->encode("cab cab") == Ids{9, 4, 2, 5});
}

TEST_CASE("added tokens: the longest at the leftmost place", "[data]") {
  BpeVocabulary vocabulary = small_vocabulary();
  vocabulary.added = {{.content = "<a>", .id = 9, .special = true},
                      {.content = "<a>b", .id = 10},
                      {.content = "<l>", .id = 11, .special = true, .strip_left = true},
                      {.content = "<r>", .id = 12, .special = true, .strip_right = true}};
  const auto tokenizer = make_bpe_tokenizer(vocabulary, "small");
  CHECK(tokenizer->vocab_size() == 13);
  CHECK(tokenizer->encode("a<a>c<a>bc") == Ids{0, 9, 2, 10, 2});
  CHECK(tokenizer->encode("a \t\xC2\xA0<l> c<r>\n\xE3\x80\x80<r> a") ==
        Ids{0, 11, 4, 2, 12, 12, 0});
  CHECK(tokenizer->encode("a  <a>") == Ids{0, 4, 4, 9});
  CHECK(tokenizer->decode({0, 9, 10, 11, 2}) == "a<a>bc");
}

TEST_CASE("text that is no UTF-8 is encoded as U+FFFD", "[data]") {
  BpeVocabulary vocabulary = small_vocabulary();
  // The bytes EF, BF and BD of U+FFFD, and 80, in the alphabet of GPT-2.
  vocabulary.tokens.insert(vocabulary.tokens.end(),
                           {"\xC3\xAF", "\xC2\xBF", "\xC2\xBD", "\xC4\xA2"});
  const auto tokenizer = make_bpe_tokenizer(vocabulary, "small");
  CHECK(tokenizer->encode("a\x80z\xE2\x82") == Ids{0, 9, 10, 11, 9, 10, 11});
  CHECK(tokenizer->encode("a\x80") == tokenizer->encode("a\xEF\xBF\xBD"));
  CHECK(tokenizer->decode({0, 9, 10, 11}) == "a\xEF\xBF\xBD");
  CHECK(tokenizer->decode({9, 10, 0, 12}) ==
        "\xEF\xBF\xBD"
        "a\xEF\xBF\xBD");
}

TEST_CASE("one tokenizer serves many threads", "[data]") {
  const auto tokenizer = make_tokenizer(PREFOPT_TEST_DATA_DIR "/tokenizers/smollm2");
  std::vector<std::string> texts;
  for (int i = 0; i < 500; ++i)
    texts.push_back("word " + std::to_string(i * i) + " caf\xC3\xA9 " +
                    std::string(static_cast<std::size_t>(i), 'x'));
  std::vector<Ids> expected;
  for (const std::string& text : texts) expected.push_back(tokenizer->encode(text));
  std::vector<std::vector<Ids>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (const std::string& text : texts) result.push_back(tokenizer->encode(text));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) CHECK(result == expected);
}

TEST_CASE("vocabularies that are none are refused", "[data]") {
  const auto refuse = [](const BpeVocabulary& vocabulary, const std::string& text) {
    CHECK_THROWS_TEXT(make_bpe_tokenizer(vocabulary, "small"), CheckpointError, text);
  };
  BpeVocabulary vocabulary = small_vocabulary();
  vocabulary.merges.emplace_back("a", "d");
  refuse(vocabulary, "small: expected merge 4 to speak of tokens in the vocabulary, got 'd'");
  vocabulary.merges.back() = {"a", "1"};
  refuse(vocabulary, "small: expected merge 4 to speak of tokens in the vocabulary, got 'a1'");
  vocabulary = small_vocabulary();
  vocabulary.tokens.push_back("bc");
  refuse(vocabulary, "small: expected tokens that differ, got 'bc' as 6 and 9");
  vocabulary = small_vocabulary();
  vocabulary.eos_id = 9;
  refuse(vocabulary, "small: expected the end token in [0, 9), got 9");
  vocabulary.eos_id = -1;
  vocabulary.added = {{.content = "<a>", .id = 1 << 20}};
  refuse(vocabulary, "small: expected the added token '<a>' with an id in [0, 65546), got 1048576");
  vocabulary.added = {{.content = "<a>", .id = 3}};
  refuse(vocabulary, "small: expected the added token '<a>' with its own id, got 3, which is '1'");
  vocabulary.added = {{.content = "<a>", .id = 9}, {.content = "<b>", .id = 9}};
  refuse(vocabulary,
         "small: expected the added token '<b>' with its own id, got 9, which is '<a>'");
  vocabulary.added = {{.content = "ab", .id = 9}};
  refuse(vocabulary,
         "small: expected the added token 'ab' with its own id, got 9, which is not that of "
         "the vocabulary, 5");
  vocabulary.added = {{.content = "", .id = 9}};
  refuse(vocabulary, "small: expected the added token 9 to hold text, got none");
  vocabulary.added = {{.content = "\xA9", .id = 9}};
  refuse(vocabulary, "small: expected the added token 9 in UTF-8, got other bytes");
  vocabulary = small_vocabulary();
  vocabulary.splits.insert(vocabulary.splits.begin(), {.add_prefix_space = true});
  CHECK_THROWS_TEXT(make_bpe_tokenizer(vocabulary, "small"), CheckpointError,
                    "word splits: expected a space before the text in the last split alone, with "
                    "GPT-2's pattern or none, got one in split 0");
}

TEST_CASE("a tokenizer.json is read alone and with what lies next to it", "[data]") {
  const TokenizerFolder folder;
  auto tokenizer = folder.load(small_file());
  CHECK(tokenizer->name() == folder.file());
  CHECK(tokenizer->vocab_size() == 10);
  CHECK(tokenizer->encode("<s> abc") == Ids{9, 8});
  CHECK(tokenizer->eos_id() == -1);
  CHECK(tokenizer->chat_template().empty());

  folder.write("tokenizer_config.json",
               R"({"bos_token": "<s>", "eos_token": {"content": "abc"}, "pad_token": "1",
                   "chat_template": [{"name": "tool_use", "template": "x"},
                                     {"name": "default", "template": "y"}]})");
  tokenizer = make_tokenizer(folder.file());
  CHECK(tokenizer->bos_id() == -1);  // there is one, but nothing puts it before a text
  CHECK(tokenizer->eos_id() == 7);
  CHECK(tokenizer->pad_id() == 3);
  CHECK(tokenizer->chat_template() == "y");

  folder.write("tokenizer_config.json", R"({"bos_token": "<s>", "add_bos_token": true})");
  folder.write("chat_template.jinja", "z\n");
  tokenizer = make_tokenizer(folder.path());
  CHECK(tokenizer->bos_id() == 9);
  CHECK(tokenizer->chat_template() == "z\n");

  json content = small_file();
  content["post_processor"] = {{"type", "Sequence"},
                               {"processors",
                                {{{"type", "ByteLevel"}},
                                 {{"type", "TemplateProcessing"},
                                  {"single",
                                   {{{"SpecialToken", {{"id", "<s>"}}}},
                                    {{"Sequence", {{"id", "A"}}}},
                                    {{"SpecialToken", {{"id", "ab"}}}}}}}}}};
  folder.write("tokenizer_config.json", "{}");
  tokenizer = folder.load(content);
  CHECK(tokenizer->bos_id() == 9);
  CHECK(tokenizer->eos_id() == 5);
  folder.write("tokenizer_config.json", R"({"add_bos_token": false})");
  CHECK(folder.load(content)->bos_id() == -1);

  folder.write("tokenizer_config.json", R"({"eos_token": "</s>"})");
  CHECK_THROWS_TEXT(make_tokenizer(folder.path()), CheckpointError,
                    folder.path() +
                        "/tokenizer_config.json: eos_token: expected a token of "
                        "tokenizer.json, got '</s>'");
}

TEST_CASE("what decides tokens decides the fingerprint", "[data]") {
  const auto print = [](const BpeVocabulary& vocabulary) {
    return make_bpe_tokenizer(vocabulary, "x")->fingerprint();
  };
  const std::string base = print(small_vocabulary());
  CHECK(base == make_bpe_tokenizer(small_vocabulary(), "y")->fingerprint());
  BpeVocabulary other = small_vocabulary();
  std::swap(other.merges[0], other.merges[1]);
  CHECK(print(other) != base);
  other = small_vocabulary();
  other.splits = named_word_splits("qwen2", "test");
  CHECK(print(other) != base);
  other = small_vocabulary();
  other.eos_id = 3;
  CHECK(print(other) != base);
}

TEST_CASE("a tokenizer.json that would give other tokens is refused by field", "[data]") {
  const TokenizerFolder folder;
  std::size_t refused = 0;
  const auto refuse = [&](const std::string& pointer, const json& value, const std::string& text) {
    json content = small_file();
    content[json::json_pointer(pointer)] = value;
    const prefopt::testing_support::MemoryLimit limit;
    ++refused;
    CHECK_THROWS_TEXT(folder.load(content), CheckpointError, folder.file() + ": " + text);
  };
  const std::string all = ", which is all that is known here, got ";
  const std::string are_all = ", which are all that is known here, got ";
  refuse("/model/type", "WordPiece",
         "model.type: expected 'BPE' or 'Unigram'" + are_all + "'WordPiece'");
  refuse("/model/dropout", 0.1, "model.dropout: expected nothing" + all + "0.1");
  refuse("/model/end_of_word_suffix", "</w>",
         "model.end_of_word_suffix: expected nothing" + all + "'</w>'");
  refuse("/model/new_field", 1,
         "model: expected no other fields than those known here, got 'new_field'");
  refuse("/new_field", 1, "expected no other fields than those known here, got 'new_field'");
  refuse("/model/vocab", 3, "model.vocab: expected an object of tokens and ids, got 3");
  refuse("/model/vocab/a", "0", "model.vocab: expected an id in [0, 65545) of 'a', got text");
  refuse("/model/vocab/a", -1, "model.vocab: expected an id in [0, 65545) of 'a', got -1");
  refuse("/model/vocab/a", 65545, "model.vocab: expected an id in [0, 65545) of 'a', got 65545");
  refuse("/model/vocab/a", 1, "model.vocab: expected its own id for 'b', got 1, which 'a' has too");
  refuse("/model/vocab/", 9,
         "model.vocab: expected tokens of one character at least, got an empty one");
  refuse("/model/merges", "a b", "model.merges: expected a list, got 'a b'");
  refuse("/model/merges/1", "ab", "model.merges[1]: expected two tokens, got 'ab'");
  refuse("/model/merges/1", "a b c", "model.merges[1]: expected two tokens, got 'a b c'");
  refuse("/model/merges/1", json{"a"}, "model.merges[1]: expected two tokens, got list");
  refuse("/model/merges/1", "a x",
         "expected merge 1 to speak of tokens in the vocabulary, got 'x'");
  refuse("/model/ignore_merges", 1, "model.ignore_merges: expected true or false, got 1");
  refuse("/added_tokens/0/single_word", 1,
         "added_tokens[0].single_word: expected true or false, got 1");
  refuse("/added_tokens/0/id", 1 << 24,
         "added_tokens[0].id: expected an id in [0, 16777216), got 16777216");
  refuse("/added_tokens/0/content", "", "added_tokens[0].content: expected text, got ''");
  refuse("/added_tokens/0/content", nullptr, "added_tokens[0].content: expected text, got null");
  refuse("/added_tokens", 1, "added_tokens: expected a list, got 1");
  const std::string normalizers =
      "normalizer.type: expected 'Sequence', 'NFC', 'NFD', 'NFKC', 'NFKD', 'Lowercase', 'Strip', "
      "'StripAccents', 'Prepend', 'Replace', 'Nmt' or 'Precompiled'" +
      are_all;
  refuse("/normalizer", {{"type", "BertNormalizer"}}, normalizers + "'BertNormalizer'");
  refuse("/normalizer", {{"type", "ByteLevel"}}, normalizers + "'ByteLevel'");
  refuse("/normalizer", {{"type", "NFC"}, {"new", 1}},
         "normalizer: expected no other fields than those known here, got 'new'");
  refuse("/normalizer", {{"type", "Prepend"}}, "normalizer.prepend: expected text, got null");
  refuse("/normalizer", {{"type", "Strip"}, {"strip_left", true}},
         "normalizer.strip_right: expected true or false, got null");
  const auto replace = [](const json& pattern) {
    return json{{"type", "Replace"}, {"pattern", pattern}, {"content", "x"}};
  };
  refuse("/normalizer", replace({{"String", ""}}),
         "normalizer.pattern: expected a pattern of one character at least, got an empty one");
  refuse(
      "/normalizer", replace({{"Regex", "^a"}}),
      "normalizer.pattern: expected a pattern that PCRE2 and Oniguruma read alike, got an anchor "
      "at offset 0 of '^a'");
  const auto charsmap = [](const std::string& text) {
    return json{{"type", "Precompiled"}, {"precompiled_charsmap", text}};
  };
  const std::string table = "normalizer.precompiled_charsmap: expected ";
  refuse("/normalizer", charsmap("AA!="), table + "base64, got 'AA!='");
  refuse("/normalizer", charsmap("AAA"), table + "base64, got 'AAA'");
  refuse("/normalizer", charsmap("BAAAAA=="),
         table + "SentencePiece's table of replacements, got 4 bytes with a trie of 4");
  refuse("/normalizer", charsmap("BAAAAAAAAAA="),
         table + "SentencePiece's table of replacements, got a trie that leads out of it");
  const std::string pre_tokenizers =
      "expected 'Sequence', 'Split', 'Metaspace', 'ByteLevel', 'Digits', 'Punctuation', "
      "'Whitespace' or 'WhitespaceSplit'" +
      are_all;
  refuse("/pre_tokenizer", {{"type", "BertPreTokenizer"}},
         "pre_tokenizer.type: " + pre_tokenizers + "'BertPreTokenizer'");
  const auto sequence = [&](const json& first) {
    return json{{"type", "Sequence"}, {"pretokenizers", json::array({first})}};
  };
  refuse("/pre_tokenizer", sequence({{"type", "UnicodeScripts"}}),
         "pre_tokenizer.pretokenizers[0].type: " + pre_tokenizers + "'UnicodeScripts'");
  json split{
      {"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Joined"}, {"invert", false}};
  refuse("/pre_tokenizer", sequence(split),
         "pre_tokenizer.pretokenizers[0].behavior: expected one of 'Removed', 'Isolated', "
         "'MergedWithPrevious', 'MergedWithNext', 'Contiguous', got 'Joined'");
  split["behavior"] = "Isolated";
  split["pattern"] = {{"Regex", "\\w"}};
  refuse("/pre_tokenizer", sequence(split),
         "pre_tokenizer.pretokenizers[0].pattern: expected a pattern that PCRE2 and Oniguruma read "
         "alike, got '\\w' at offset 0 of '\\w'");
  json metaspace{{"type", "Metaspace"}, {"replacement", "__"}};
  refuse("/pre_tokenizer", metaspace,
         "pre_tokenizer.replacement: expected one character, got '__'");
  metaspace["replacement"] = "_";
  metaspace["prepend_scheme"] = "last";
  refuse("/pre_tokenizer", metaspace,
         "pre_tokenizer.prepend_scheme: expected one of 'always', 'first', 'never', got 'last'");
  metaspace["prepend_scheme"] = "first";
  metaspace["add_prefix_space"] = false;
  refuse("/pre_tokenizer", metaspace,
         "pre_tokenizer.add_prefix_space: expected true, but for the prepend_scheme 'never', got "
         "false");
  const std::string decoders =
      "decoder.type: expected 'Sequence', 'ByteLevel', 'Metaspace', 'Replace', 'ByteFallback', "
      "'Fuse' or 'Strip'" +
      are_all;
  refuse("/decoder", {{"type", "WordPiece"}}, decoders + "'WordPiece'");
  refuse("/decoder", {{"type", "BPEDecoder"}}, decoders + "'BPEDecoder'");
  refuse("/decoder", {{"type", "Strip"}, {"content", " "}, {"start", -1}, {"stop", 0}},
         "decoder.start: expected a number of characters, got -1");
  const auto unigram = [&](const json& vocab, const json& unknown) {
    return json{{"type", "Unigram"}, {"vocab", vocab}, {"unk_id", unknown}};
  };
  const json two = json::parse(R"([["<unk>", 0.0], ["a", -1.5]])");
  refuse("/model", unigram(json::parse(R"([["a"]])"), 0),
         "model.vocab[0]: expected a token and its score, got list");
  refuse("/model", unigram(json::parse(R"([["", 1.0]])"), 0),
         "model.vocab[0]: expected a token of one character, got an empty one");
  refuse("/model", unigram(two, nullptr),
         "model.unk_id: expected the id of the unknown token, got null");
  refuse("/model", unigram(two, 2), "model.unk_id: expected an id in [0, 2), got 2");
  refuse("/post_processor", {{"type", "BertProcessing"}},
         "post_processor.type: expected 'TemplateProcessing', 'ByteLevel' or 'Sequence', which are "
         "all that is known here, got 'BertProcessing'");
  refuse("/post_processor", {{"type", "TemplateProcessing"}, {"single", json::array()}},
         "post_processor.single: expected the text somewhere, got none");
  refuse("/post_processor",
         {{"type", "TemplateProcessing"},
          {"single", {{{"SpecialToken", {{"id", "</s>"}}}}, {{"Sequence", {{"id", "A"}}}}}}},
         "post_processor: expected tokens of the vocabulary, got '</s>'");
  prefopt::testing_support::report_count("bad tokenizer.json files refused", refused);
}

TEST_CASE("a damaged tokenizer.json is a typed error wherever it breaks off", "[data]") {
  const TokenizerFolder folder;
  const std::string whole = small_file().dump();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    folder.write("tokenizer.json", whole.substr(0, size));
    CHECK_THROWS_AS(make_tokenizer(folder.path()), CheckpointError);
  }
  // A value of each other type in each place: an error with the file's name, or a tokenizer.
  const json flat = small_file().flatten();
  for (const auto& [pointer, original] : flat.items()) {
    for (const json& value : {json(nullptr), json(true), json(-1), json(1e300), json("x"),
                              json::array(), json::object(), json::array({json::array()})}) {
      json content = small_file();
      content[json::json_pointer(pointer)] = value;
      try {
        folder.load(content)->encode("abc <s>\xFF");
      } catch (const CheckpointError& error) {
        CHECK(std::string(error.what()).starts_with(folder.file() + ": "));
      }
    }
  }
  std::string deep = whole;
  deep.replace(deep.find("null"), 4, std::string(80, '[') + std::string(80, ']'));
  folder.write("tokenizer.json", deep);
  CHECK_THROWS_TEXT(make_tokenizer(folder.path()), CheckpointError,
                    folder.file() + ": expected JSON, got nesting deeper than 64 levels");
  std::string twice = whole;
  twice.insert(twice.find("\"ab\":"), "\"bc\":3,");
  folder.write("tokenizer.json", twice);
  CHECK_THROWS_TEXT(make_tokenizer(folder.path()), CheckpointError,
                    folder.file() + ": expected JSON, got the key 'bc' twice");
}

TEST_CASE("tokenizers are looked for where they are named", "[data]") {
  const TempDir dir;
  CHECK_THROWS_TEXT(
      make_tokenizer(dir.path()), CheckpointError,
      dir.file("tokenizer.json") + ": expected a readable file, got No such file or directory");
  CHECK_THROWS_TEXT(
      make_tokenizer(dir.file("missing")), ConfigError,
      "tokenizer: expected 'byte', a tokenizer.json, a folder that holds one or a .gguf file, "
      "got '" +
          dir.file("missing") + "'");
}
