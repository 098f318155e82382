// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/tokenizer.h"

#include <fmt/format.h>

#include <array>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "core/file.h"
#include "core/json.h"
#include "core/parallel.h"
#include "data/begin_token.h"
#include "data/companions.h"
#include "data/model_memory.h"
#include "data/tokenizer_gguf.h"
#include "data/tokenizer_json.h"
#include "data/tokenizer_writer.h"
#include "data/tokenizers/pipeline.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTokenizerFile = "tokenizer.json";

// Files that say how texts become tokens, in prefopt, transformers or other programs.
constexpr std::array kTokenizerFiles = std::to_array<std::string_view>(
    {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
     "chat_template.json", "vocab.json", "merges.txt", "tokenizer.model"});

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

bool is_gguf(const fs::path& path) { return path.extension() == ".gguf" && !is_folder(path); }

/// The words of a model without a tokenizer for its tokens.
struct TokenFacts {
  std::int64_t vocab_size = 0;  ///< 0: unknown
  std::int64_t bos_id = -1, eos_id = -1, pad_id = -1;
};

TokenFacts facts_of_gguf(const std::string& path) {
  const GgufFile file = GgufFile::open(path);
  const auto id = [&](const char* name) {
    const std::string key = fmt::format("tokenizer.ggml.{}_token_id", name);
    return file.has(key) ? file.integer(key) : std::int64_t{-1};
  };
  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  const bool known = embedding != nullptr && !embedding->shape.empty();
  return {.vocab_size = known ? embedding->shape.front() : 0,
          .bos_id = id("bos"),
          .eos_id = id("eos"),
          .pad_id = id("padding")};
}

// Defects of a config.json are left to the model's reader.
TokenFacts facts_of_folder(const std::string& folder) {
  std::string text;
  if (!detail::try_read_file(folder + "/config.json", text).empty()) return {};
  const auto config = detail::Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) return {};
  const auto number = [&](const char* name, std::int64_t otherwise) {
    const auto at = config.find(name);
    if (at == config.end()) return otherwise;
    const detail::Json& first = at->is_array() && !at->empty() ? at->front() : *at;
    return first.is_number_integer() ? first.get<std::int64_t>() : otherwise;
  };
  return {.vocab_size = number("vocab_size", 0),
          .bos_id = number("bos_token_id", -1),
          .eos_id = number("eos_token_id", -1),
          .pad_id = number("pad_token_id", -1)};
}

TokenFacts facts_of(const std::string& model) {
  return is_gguf(model) ? facts_of_gguf(model) : facts_of_folder(model);
}

std::string missing_tokenizer(const std::string& model, const TokenFacts& facts) {
  std::string vocabulary = "none";
  if (facts.vocab_size > 0) vocabulary = fmt::format("none for {} tokens", facts.vocab_size);
  for (const char* other : {"tokenizer.model", "vocab.json"}) {
    if (!is_there(fs::path(model) / other)) continue;
    vocabulary = fmt::format("{} alone, which is not read here", other);
  }
  return fmt::format(
      "{}: expected a tokenizer.json with the model, or a tokenizer in a GGUF file, to read text "
      "with, got {}; name one (model.tokenizer, --tokenizer), or say 'byte' for a model of bytes",
      model, vocabulary);
}

/// Stands for the tokenizer that a model should have brought.
class MissingTokenizer final : public Tokenizer {
 public:
  MissingTokenizer(std::string model, const TokenFacts& facts)
      : model_(std::move(model)), facts_(facts) {}

  std::string name() const override { return fmt::format("none of {}", model_); }
  std::vector<std::int64_t> encode(std::string_view) const override {
    throw ConfigError(missing_tokenizer(model_, facts_));
  }
  std::string decode(const std::vector<std::int64_t>& ids) const override {
    std::string text;
    for (const std::int64_t id : ids) text += fmt::format("[{}]", id);
    return text;
  }
  std::int64_t vocab_size() const override { return facts_.vocab_size; }
  std::int64_t bos_id() const override { return facts_.bos_id; }
  std::int64_t eos_id() const override { return facts_.eos_id; }
  std::int64_t pad_id() const override { return facts_.pad_id; }

 private:
  std::string model_;
  TokenFacts facts_;
};

/// Another tokenizer, and the chat format that a run used with it.
class RememberingTokenizer final : public Tokenizer, public detail::HasBeginToken {
 public:
  RememberingTokenizer(std::shared_ptr<const Tokenizer> tokenizer, std::string chat_format)
      : tokenizer_(std::move(tokenizer)), chat_format_(std::move(chat_format)) {}

  std::string name() const override { return tokenizer_->name(); }
  std::vector<std::int64_t> encode(std::string_view text) const override {
    return tokenizer_->encode(text);
  }
  std::vector<std::int64_t> encode_plain(std::string_view text,
                                         std::span<const TextRange> plain) const override {
    return tokenizer_->encode_plain(text, plain);
  }
  std::vector<std::int64_t> encode_part(std::string_view text, std::span<const TextRange> plain,
                                        const TextPlace& place) const override {
    return tokenizer_->encode_part(text, plain, place);
  }
  std::int64_t find_control(std::string_view text) const override {
    return tokenizer_->find_control(text);
  }
  std::string spelling(std::int64_t id) const override { return tokenizer_->spelling(id); }
  std::string decode(const std::vector<std::int64_t>& ids) const override {
    return tokenizer_->decode(ids);
  }
  std::string decode_part(const std::vector<std::int64_t>& ids,
                          const std::vector<std::int64_t>& before) const override {
    return tokenizer_->decode_part(ids, before);
  }
  std::int64_t vocab_size() const override { return tokenizer_->vocab_size(); }
  std::int64_t bos_id() const override { return tokenizer_->bos_id(); }
  std::int64_t begin_id() const override { return detail::begin_id_of(*tokenizer_); }
  std::int64_t eos_id() const override { return tokenizer_->eos_id(); }
  std::int64_t pad_id() const override { return tokenizer_->pad_id(); }
  std::string chat_template() const override { return tokenizer_->chat_template(); }
  std::string chat_format() const override { return chat_format_; }
  std::string fingerprint() const override { return tokenizer_->fingerprint(); }

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string chat_format_;
};

std::shared_ptr<const Tokenizer> remembering(std::shared_ptr<const Tokenizer> tokenizer,
                                             std::string chat_format) {
  if (chat_format.empty()) return tokenizer;
  return std::make_shared<RememberingTokenizer>(std::move(tokenizer), std::move(chat_format));
}

std::string remembered_chat_format(const std::string& folder) {
  return folder.empty() || !is_folder(folder) ? "" : detail::read_memory(folder).chat_format;
}

/// Returns the tokenizer that a folder or file brings; empty: none.
std::string own_tokenizer(const std::string& path) {
  if (is_gguf(path)) return detail::has_tokenizer(GgufFile::open(path)) ? path : "";
  if (is_there(fs::path(path) / kTokenizerFile)) return path;
  return is_folder(path) ? detail::read_memory(path).tokenizer : "";
}

}  // namespace

std::vector<std::int64_t> Tokenizer::encode_plain(std::string_view text,
                                                  std::span<const TextRange> /*plain*/) const {
  return encode(text);
}

std::vector<std::int64_t> Tokenizer::encode_part(std::string_view text,
                                                 std::span<const TextRange> plain,
                                                 const TextPlace& /*place*/) const {
  return encode_plain(text, plain);
}

std::string Tokenizer::decode_part(const std::vector<std::int64_t>& ids,
                                   const std::vector<std::int64_t>& /*before*/) const {
  return decode(ids);
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
  std::string chat_format;
  if (is_folder(path)) {
    const detail::ModelMemory memory = detail::read_memory(path.string());
    chat_format = memory.chat_format;
    path /= kTokenizerFile;
    if (memory.tokenizer == "byte" && !is_there(path)) {
      return remembering(std::make_shared<ByteTokenizer>(), chat_format);
    }
  }
  if (path.extension() == ".json") {
    return remembering(
        detail::make_pipeline(detail::read_tokenizer_json(path.string()), path.string()),
        chat_format);
  }
  if (path.extension() == ".gguf") {
    const GgufFile file = GgufFile::open(path.string());
    return detail::make_pipeline(detail::spec_of(detail::read_gguf_vocabulary(file), file.path()),
                                 file.path());
  }
  throw ConfigError(fmt::format(
      "tokenizer: expected 'byte', a {}, a folder that holds one or a .gguf file, got '{}'",
      kTokenizerFile, name));
}

std::string find_tokenizer(const std::string& model, const std::string& adapter) {
  for (const std::string* path : {&adapter, &model}) {
    if (path->empty()) continue;
    if (std::string own = own_tokenizer(*path); !own.empty()) return own;
  }
  const std::int64_t bytes = ByteTokenizer().vocab_size();
  return !model.empty() && facts_of(model).vocab_size == bytes ? "byte" : "";
}

std::string tokenizer_of_model(const std::string& model) {
  std::string name = find_tokenizer(model);
  if (name.empty()) throw ConfigError(missing_tokenizer(model, facts_of(model)));
  return name;
}

std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& name, const std::string& model,
                                                const std::string& adapter) {
  const std::string found = name.empty() ? find_tokenizer(model, adapter) : name;
  std::shared_ptr<const Tokenizer> tokenizer =
      found.empty() ? std::make_shared<MissingTokenizer>(model, facts_of(model))
                    : make_tokenizer(found);
  for (const std::string* folder : {&adapter, &model}) {
    if (std::string format = remembered_chat_format(*folder); !format.empty()) {
      return remembering(std::move(tokenizer), std::move(format));
    }
  }
  return tokenizer;
}

namespace {

/// Returns the files of a tokenizer that are there, and what is remembered; not those of a GGUF
/// file.
FolderFiles present_files(const std::string& name, const std::string& chat_format,
                          const std::string& row_options) {
  FolderFiles files;
  const auto take = [&](const fs::path& from, std::string_view as) {
    files[std::string(as)] = detail::read_file<CheckpointError>(from.string());
  };
  const fs::path path(name);
  bool bytes = name == "byte";
  if (!is_gguf(path) && !bytes && !name.empty()) {
    const fs::path folder = is_folder(path) ? path : path.parent_path();
    const fs::path main = is_folder(path) ? path / kTokenizerFile : path;
    if (is_there(main)) take(main, kTokenizerFile);
    for (const std::string_view other : kTokenizerFiles) {
      if (is_there(folder / other)) take(folder / other, other);
    }
    bytes = !is_there(main) && is_folder(path) && detail::read_memory(name).tokenizer == "byte";
  }
  const detail::ModelMemory memory{
      .tokenizer = bytes ? "byte" : "", .chat_format = chat_format, .data = row_options};
  if (bytes || !chat_format.empty() || !row_options.empty()) {
    files[std::string(detail::kMemoryFile)] = detail::written_memory(memory);
  }
  return files;
}

detail::FilesLater files_later(const std::string& name, const std::string& chat_format,
                               const std::string& row_options) {
  FolderFiles files = present_files(name, chat_format, row_options);
  if (!is_gguf(name)) return [files = std::move(files)] { return files; };
  const GgufFile file = GgufFile::open(name);
  const auto spec = [file] {
    return detail::spec_of(detail::read_gguf_vocabulary(file), file.path());
  };
  detail::check_writable(spec(), file.path());
  return [files = std::move(files), file, spec] {
    FolderFiles all = detail::written_tokenizer(spec(), file.path());
    all.insert(files.begin(), files.end());
    return all;
  };
}

}  // namespace

FolderFiles tokenizer_files(const std::string& name, const std::string& chat_format,
                            const std::string& row_options) {
  return files_later(name, chat_format, row_options)();
}

FolderFiles model_companions(const std::string& tokenizer, const std::string& model,
                             const std::string& chat_format, const std::string& row_options) {
  return detail::model_companions_later(tokenizer, model, chat_format, row_options)();
}

detail::FilesLater detail::model_companions_later(const std::string& tokenizer,
                                                  const std::string& model,
                                                  const std::string& chat_format,
                                                  const std::string& row_options) {
  const bool copies = tokenizer.empty() && is_folder(model);
  return files_later(copies ? model : tokenizer, chat_format, row_options);
}

void write_files(const FolderFiles& files, const std::string& folder) {
  detail::make_directory<CheckpointError>(folder);
  for (const auto& [name, content] : files) {
    detail::write_file<CheckpointError>(fmt::format("{}/{}", folder, name), content);
  }
}

}  // namespace prefopt
