// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/tokenizer.h"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

#include "core/parallel.h"
#include "data/tokenizer_gguf.h"
#include "data/tokenizer_json.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTokenizerFile = "tokenizer.json";

}  // namespace

std::vector<std::int64_t> Tokenizer::encode_plain(std::string_view text,
                                                  std::span<const TextRange> /*plain*/) const {
  return encode(text);
}

std::int64_t Tokenizer::find_control(std::string_view /*text*/) const { return -1; }

std::string Tokenizer::spelling(std::int64_t id) const { return decode({id}); }

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

std::string ByteTokenizer::spelling(std::int64_t id) const {
  if (id == bos_id()) return "<begin>";
  if (id == eos_id()) return "<end>";
  return id == pad_id() ? "<padding>" : decode({id});
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
    const GgufFile file = GgufFile::open(path.string());
    return make_bpe_tokenizer(
        detail::bpe_vocabulary(detail::read_gguf_vocabulary(file), file.path()), file.path());
  }
  throw ConfigError(fmt::format(
      "make_tokenizer: expected 'byte', a {}, a folder that holds one or a .gguf file, got '{}'",
      kTokenizerFile, name));
}

std::string tokenizer_of_model(const std::string& model) {
  std::error_code ignored;
  const bool has_one = fs::path(model).extension() == ".gguf"
                           ? GgufFile::open(model).has("tokenizer.ggml.model")
                           : fs::exists(fs::path(model) / kTokenizerFile, ignored);
  return has_one ? model : "byte";
}

}  // namespace prefopt
