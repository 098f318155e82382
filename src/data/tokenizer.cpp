// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/tokenizer.h"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

#include "core/parallel.h"
#include "data/tokenizer_gguf.h"
#include "data/tokenizer_json.h"
#include "prefopt/error.h"
#include "prefopt/model/gguf.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTokenizerFile = "tokenizer.json";

detail::GgufVocabulary read_gguf_vocabulary(const std::string& path) {
  const GgufFile file = GgufFile::open(path);
  const auto id = [&](const char* key) { return file.has(key) ? file.integer(key) : -1; };
  const auto text = [&](const char* key) { return file.has(key) ? file.text(key) : std::string(); };
  detail::GgufVocabulary vocabulary{.model = file.text("tokenizer.ggml.model"),
                                    .pre = text("tokenizer.ggml.pre"),
                                    .tokens = file.texts("tokenizer.ggml.tokens"),
                                    .merges = {},
                                    .token_type = {},
                                    .bos_token_id = id("tokenizer.ggml.bos_token_id"),
                                    .eos_token_id = id("tokenizer.ggml.eos_token_id"),
                                    .padding_token_id = id("tokenizer.ggml.padding_token_id"),
                                    .add_bos_token = file.has("tokenizer.ggml.add_bos_token") &&
                                                     file.flag("tokenizer.ggml.add_bos_token"),
                                    .chat_template = text("tokenizer.chat_template")};
  if (file.has("tokenizer.ggml.merges")) vocabulary.merges = file.texts("tokenizer.ggml.merges");
  if (file.has("tokenizer.ggml.token_type")) {
    vocabulary.token_type = file.integers("tokenizer.ggml.token_type");
  }
  return vocabulary;
}

}  // namespace

std::vector<std::vector<std::int64_t>> Tokenizer::encode_batch(
    std::span<const std::string_view> texts) const {
  std::vector<std::vector<std::int64_t>> ids(texts.size());
  parallel_for(0, static_cast<std::int64_t>(texts.size()), /*grain=*/1,
               [&](std::int64_t first, std::int64_t last) {
                 for (auto i = static_cast<std::size_t>(first); i < static_cast<std::size_t>(last);
                      ++i) {
                   ids[i] = encode(texts[i]);
                 }
               });
  return ids;
}

std::vector<std::int64_t> ByteTokenizer::encode(std::string_view text) const {
  std::vector<std::int64_t> ids;
  ids.reserve(text.size());
  // Through unsigned char: a plain char above 127 would become a negative id.
  for (char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

std::string ByteTokenizer::decode(const std::vector<std::int64_t>& ids) const {
  std::string text;
  text.reserve(ids.size());
  for (std::int64_t id : ids) {
    if (id >= 0 && id < 256) text.push_back(static_cast<char>(id));
  }
  return text;
}

std::shared_ptr<const Tokenizer> make_tokenizer(std::string_view name) {
  if (name == "byte") return std::make_shared<ByteTokenizer>();
  fs::path path(name);
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) path /= kTokenizerFile;
  if (path.extension() == ".json") {
    return make_bpe_tokenizer(detail::read_tokenizer_json(path.string()), path.string());
  }
  if (path.extension() == ".gguf") {
    return make_bpe_tokenizer(
        detail::bpe_vocabulary(read_gguf_vocabulary(path.string()), path.string()), path.string());
  }
  throw ConfigError(fmt::format(
      "make_tokenizer: expected 'byte', a {0}, a folder that holds one or a .gguf file, got '{1}'",
      kTokenizerFile, name));
}

std::string tokenizer_of_model(const std::string& model) {
  std::error_code ignored;
  const bool has_one = fs::path(model).extension() == ".gguf" ||
                       fs::exists(fs::path(model) / kTokenizerFile, ignored);
  return has_one ? model : "byte";
}

}  // namespace prefopt
