// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizers/pipeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <mutex>
#include <optional>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "core/utf8.h"
#include "data/begin_token.h"
#include "data/text_ranges.h"
#include "data/tokenizers/added_tokens.h"
#include "data/tokenizers/bpe_model.h"
#include "data/tokenizers/decoder.h"
#include "data/tokenizers/fingerprint.h"
#include "data/tokenizers/normalizer.h"
#include "data/tokenizers/pre_tokenizer.h"
#include "data/tokenizers/unicode.h"
#include "data/tokenizers/unigram_model.h"
#include "data/tokenizers/word_cache.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

using Id = TokenModel::Id;
using Ids = std::vector<std::int64_t>;

constexpr std::size_t kMaxTokens = std::size_t{1} << 24;
// Ids that are no token: room for them is made, so a vocabulary must not ask for much of it.
constexpr std::size_t kMaxGaps = std::size_t{1} << 16;
constexpr std::size_t kMaxText = std::size_t{1} << 29;  // of a text; NFC makes it 3 times as long

/// Returns the same ranges of `map(text)`; a beginning of `text` becomes one of the result.
template <class Map>
std::vector<TextRange> mapped(std::span<const TextRange> ranges, std::string_view text,
                              const Map& map) {
  std::vector<TextRange> result;
  for (const TextRange& range : ranges) {
    result.push_back(
        {map(text.substr(0, range.begin)).size(), map(text.substr(0, range.end)).size()});
  }
  return result;
}

/// The buffers and caches that one thread needs to encode.
struct Workspace {
  WordCache cache;
  SplitPattern::Scratch match;
  TokenModel::Scratch model;
  std::vector<Id> word;
};

/// Workspaces that wait for the next call, so that a cache outlives it.
class WorkspacePool {
 public:
  std::unique_ptr<Workspace> take() {
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        auto workspace = std::move(free_.back());
        free_.pop_back();
        return workspace;
      }
    }
    return std::make_unique<Workspace>();
  }
  void give(std::unique_ptr<Workspace> workspace) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(workspace));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

/// Appends the tokens of words.
class WordEncoder final : public WordSink {
 public:
  WordEncoder(const TokenModel& model, Workspace& workspace, Ids& ids)
      : model_(model), workspace_(workspace), ids_(ids) {}

  void word(std::string_view text) override {
    const std::string_view cut = model_.safe_cut();
    if (cut.empty()) return encode(text);
    std::size_t begin = 0;
    for (std::size_t at = text.find(cut, 1); at != std::string_view::npos;
         at = text.find(cut, at + cut.size())) {
      if (text.substr(0, at).ends_with(cut)) continue;
      encode(text.substr(begin, at - begin));
      begin = at;
    }
    encode(text.substr(begin));
  }

 private:
  void encode(std::string_view word) {
    const bool cached = WordCache::fits(word);
    const std::size_t hash = cached ? std::hash<std::string_view>()(word) : 0;
    if (cached && workspace_.cache.append(word, hash, ids_)) return;
    std::vector<Id>& tokens = workspace_.word;
    tokens.clear();
    model_.encode(word, workspace_.model, tokens);
    if (cached) workspace_.cache.put(word, hash, tokens);
    ids_.insert(ids_.end(), tokens.begin(), tokens.end());
  }

  const TokenModel& model_;
  Workspace& workspace_;
  Ids& ids_;
};

std::unique_ptr<const TokenModel> make_model(const TokenizerSpec& spec, bool of_bytes,
                                             const std::string& name) {
  if (const auto* unigram = std::get_if<UnigramSpec>(&spec.model)) {
    return std::make_unique<UnigramModel>(spec.tokens, *unigram, spec.unknown_id, name);
  }
  return std::make_unique<BpeModel>(spec.tokens, std::get<BpeSpec>(spec.model), spec.unknown_id,
                                    of_bytes, name);
}

/// Returns whether the model merges bytes, in whose place others have characters of an alphabet.
bool is_of_bytes(const TokenizerSpec& spec) {
  return std::holds_alternative<BpeSpec>(spec.model) && !spec.pre_tokenizer.empty() &&
         std::holds_alternative<ByteLevel>(spec.pre_tokenizer.back());
}

/// Returns whether something is put before each text between added tokens.
bool prefixes_parts(const TokenizerSpec& spec) {
  const auto prepends = [](const NormalizerStep& step) {
    return std::holds_alternative<Prepend>(step);
  };
  const auto marks = [](const PreTokenizerStep& step) {
    const auto* metaspace = std::get_if<Metaspace>(&step);
    return metaspace != nullptr && metaspace->scheme == PrependScheme::kAlways;
  };
  return std::any_of(spec.normalizer.begin(), spec.normalizer.end(), prepends) ||
         std::any_of(spec.pre_tokenizer.begin(), spec.pre_tokenizer.end(), marks);
}

void check_sizes(const TokenizerSpec& spec, const std::string& name) {
  const auto check = [&](std::size_t count, std::string_view what) {
    if (count <= kMaxTokens) return;
    throw CheckpointError(
        fmt::format("{}: expected at most {} {}, got {}", name, kMaxTokens, what, count));
  };
  check(spec.tokens.size(), "tokens");
  if (const auto* bpe = std::get_if<BpeSpec>(&spec.model)) check(bpe->merges.size(), "merges");
  check(spec.added.size(), "added tokens");
}

class Pipeline final : public Tokenizer, public HasBeginToken {
 public:
  Pipeline(TokenizerSpec spec, std::string name)
      : spec_(std::move(spec)),
        name_(std::move(name)),
        normalizer_(spec_.normalizer, name_),
        pre_tokenizer_(spec_.pre_tokenizer, is_of_bytes(spec_), name_),
        decoder_(spec_.decoder, spec_.joins_with_spaces, name_) {
    check_sizes(spec_, name_);
    check_id(spec_.unknown_id, spec_.tokens.size(), "the unknown token");
    model_ = make_model(spec_, is_of_bytes(spec_), name_);
    check_added_ids();
    take_texts();
    take_added_tokens();
    take_spellings();
    prefixes_parts_ = prefixes_parts(spec_);
    fingerprint_ = fingerprint_of(spec_);
    // Tokens and model live elsewhere now.
    spec_.tokens = {};
    spec_.model = {};
  }

  std::string name() const override { return name_; }
  std::int64_t vocab_size() const override { return static_cast<std::int64_t>(spellings_.size()); }
  std::int64_t bos_id() const override { return spec_.bos_id; }
  std::int64_t begin_id() const override {
    return spec_.begin_id >= 0 ? spec_.begin_id : spec_.bos_id;
  }
  std::int64_t eos_id() const override { return spec_.eos_id; }
  std::int64_t pad_id() const override { return spec_.pad_id; }
  std::string chat_template() const override { return spec_.chat_template; }
  std::string fingerprint() const override { return fingerprint_; }

  std::vector<std::int64_t> encode(std::string_view text) const override {
    return encode_part(text, {}, {});
  }

  std::vector<std::int64_t> encode_plain(std::string_view text,
                                         std::span<const TextRange> plain) const override {
    return encode_part(text, plain, {});
  }

  std::vector<std::int64_t> encode_part(std::string_view text, std::span<const TextRange> plain,
                                        const TextPlace& place) const override {
    if (text.size() > kMaxText) {
      throw DataError(fmt::format("{}: expected a text of at most {} bytes, got {}", name_,
                                  kMaxText, text.size()));
    }
    std::string replaced;
    std::vector<TextRange> moved;
    if (find_invalid_utf8(text) != std::string_view::npos) {
      replaced = replace_invalid_utf8(text);
      moved = mapped(plain, text, replace_invalid_utf8);
      plain = moved;
      text = replaced;
    }
    auto workspace = workspaces_.take();
    Ids ids;
    ids.reserve(text.size() / 3);
    const Lead lead = lead_of(place.before, *workspace);
    const std::size_t from = lead.takes_space ? white_space_end(text, 0) : 0;
    const std::vector<TextRange> rest = within(plain, from, text.size());
    const Part part{.text = text.substr(from),
                    .plain = rest,
                    .start = {.is_text_start = lead.start.is_text_start,
                              .takes_prefix = lead.start.takes_prefix,
                              .before = lead.text},
                    .begins = lead.begins,
                    .ends = place.is_last};
    encode_raw(part, *workspace, ids);
    workspaces_.give(std::move(workspace));
    return ids;
  }

  std::int64_t find_control(std::string_view text) const override {
    for (std::size_t from = 0; !spelled_added_.empty() && from < text.size();) {
      const auto [begin, end, token] = spelled_added_.find(text, from);
      if (token == nullptr) break;
      if (is_control(*token)) return token->id;
      from = end;
    }
    return -1;
  }

  std::string spelling(std::int64_t id) const override {
    return id < 0 || id >= vocab_size() ? std::string() : spellings_[static_cast<std::size_t>(id)];
  }

  std::string decode(const std::vector<std::int64_t>& ids) const override {
    return decode_part(ids, {});
  }

  std::string decode_part(const std::vector<std::int64_t>& ids,
                          const std::vector<std::int64_t>& before) const override {
    if (!decoder_.is_byte_level()) return decoder_.decode(texts_of(ids), begins_after(before));
    std::string text;
    for (const std::int64_t id : ids) {
      if (is_shown(id)) text += spellings_[static_cast<std::size_t>(id)];
    }
    return find_invalid_utf8(text) == std::string_view::npos ? text : replace_invalid_utf8(text);
  }

 private:
  /// A text that is encoded, and what lies around it.
  struct Part {
    std::string_view text;
    std::span<const TextRange> plain;
    PartStart start = {};
    bool begins = true, ends = true;  ///< to the normalizer
  };

  /// The influence of a text on the one that follows it.
  struct Lead {
    PartStart start = {};
    bool begins = true;
    bool takes_space = false;  ///< its last token takes along white space on its right
    std::string text = {};     ///< the last of it, normalized, where that decides about words
  };

  // --- Construction from the parts

  [[noreturn]] void fail(std::string_view expected) const {
    throw CheckpointError(fmt::format("{}: expected {}", name_, expected));
  }

  void check_id(std::int64_t id, std::size_t limit, std::string_view what) const {
    if (id < -1 || id >= static_cast<std::int64_t>(limit)) {
      fail(fmt::format("{} in [0, {}), got {}", what, limit, id));
    }
  }

  void check_added_ids() const {
    const std::size_t limit =
        std::min(spec_.tokens.size() + spec_.added.size() + kMaxGaps, kMaxTokens);
    for (const AddedToken& added : spec_.added) {
      if (added.id < 0 || added.id >= static_cast<std::int64_t>(limit)) {
        fail(fmt::format("the added token '{}' with an id in [0, {}), got {}", added.content, limit,
                         added.id));
      }
    }
  }

  /// Takes over the texts of tokens. A token that is only an added one has its own id.
  void take_texts() {
    texts_ = spec_.tokens;
    for (const AddedToken& added : spec_.added) {
      const auto id = static_cast<std::size_t>(added.id);
      if (id >= texts_.size()) texts_.resize(id + 1);
    }
    special_.assign(texts_.size(), false);
    added_.assign(texts_.size(), false);
    is_there_.assign(texts_.size(), false);
    for (std::size_t id = 0; id < spec_.tokens.size(); ++id) {
      is_there_[id] = !spec_.tokens[id].empty();
    }
    check_id(spec_.bos_id, texts_.size(), "the begin token");
    check_id(spec_.eos_id, texts_.size(), "the end token");
    check_id(spec_.pad_id, texts_.size(), "the padding token");
  }

  void check_added(const AddedToken& added, Id known, std::string_view holder) const {
    if (added.content.empty())
      fail(fmt::format("the added token {} to hold text, got none", added.id));
    // One that began within a character would cut texts there.
    if (find_invalid_utf8(added.content) != std::string_view::npos) {
      fail(fmt::format("the added token {} in UTF-8, got other bytes", added.id));
    }
    const auto refuse = [&](std::string_view why) {
      fail(fmt::format("the added token '{}' with its own id, got {}, which is {}", added.content,
                       added.id, why));
    };
    const auto id = static_cast<std::size_t>(added.id);
    const std::string_view own = id < spec_.tokens.size() ? spec_.tokens[id] : std::string_view();
    if (!own.empty() && own != added.content) refuse(fmt::format("'{}'", own));
    if (!holder.empty()) refuse(fmt::format("'{}'", holder));
    if (known >= 0 && known != added.id) {
      refuse(fmt::format("not that of the vocabulary, {}", known));
    }
  }

  std::string normalized(const AddedToken& added, SplitPattern::Scratch& scratch) const {
    if (!added.normalized || normalizer_.is_empty()) return added.content;
    std::string text = normalizer_.apply(added.content, {}, scratch).text;
    if (text.empty()) {
      fail(fmt::format("the added token '{}' to hold text after normalization, got none",
                       added.content));
    }
    return text;
  }

  void take_added_tokens() {
    const TokenIndex index(spec_.tokens);
    SplitPattern::Scratch scratch;
    std::unordered_map<std::int64_t, std::string_view> holders;
    std::unordered_map<std::string, std::int64_t> searched;  // what of normalized ones
    std::unordered_set<std::string_view> special;
    std::vector<std::pair<std::string, const AddedToken*>> raw, normal, spelled;
    for (const AddedToken& added : spec_.added) {
      check_added(added, index.find(added.content), holders[added.id]);
      holders[added.id] = added.content;
      std::string content = normalized(added, scratch);
      if (added.normalized && !searched.emplace(content, added.id).second) {
        fail(fmt::format("added tokens that differ after normalization, got '{}' twice", content));
      }
      const auto id = static_cast<std::size_t>(added.id);
      texts_[id] = content;
      is_there_[id] = true;
      added_[id] = true;
      if (added.special) special.insert(added.content);
      spelled.emplace_back(added.content, &added);
      (added.normalized ? normal : raw).emplace_back(std::move(content), &added);
    }
    for (std::size_t id = 0; id < texts_.size(); ++id) special_[id] = special.contains(texts_[id]);
    raw_added_.set(std::move(raw));
    normalized_added_.set(std::move(normal));
    spelled_added_.set(std::move(spelled));
  }

  // Bytes of a byte-level tokenizer are kept in the place of its texts.
  void take_spellings() {
    const ByteAlphabet alphabet;
    spellings_.resize(texts_.size());
    for (std::size_t id = 0; id < texts_.size(); ++id) {
      if (!decoder_.is_byte_level()) {
        spellings_[id] = decoder_.spelling(texts_[id]);
      } else if (!alphabet.bytes_of(texts_[id], spellings_[id])) {
        spellings_[id] = texts_[id];  // an added token, or one that no text reaches
      }
    }
    if (decoder_.is_byte_level()) texts_ = {};
  }

  // --- From tokens to text

  bool is_shown(std::int64_t id) const {
    if (id < 0 || id >= vocab_size()) return false;
    const auto at = static_cast<std::size_t>(id);
    return is_there_[at] && !special_[at];
  }

  /// Returns whether what follows has been given what the tokenizer puts before a text.
  bool begins_after(const std::vector<std::int64_t>& before) const {
    if (before.empty()) return true;
    const std::int64_t last = before.back();
    return prefixes_parts_ && last >= 0 && last < vocab_size() &&
           added_[static_cast<std::size_t>(last)];
  }

  std::vector<std::string> texts_of(const std::vector<std::int64_t>& ids) const {
    std::vector<std::string> texts;
    texts.reserve(ids.size());
    for (const std::int64_t id : ids) {
      if (is_shown(id)) texts.push_back(texts_[static_cast<std::size_t>(id)]);
    }
    return texts;
  }

  // --- From text to tokens

  // The end of the text tells, up to its last added token: parts of a conversation are encoded in
  // time proportional to its length.
  Lead lead_of(std::string_view before, Workspace& workspace) const {
    constexpr std::size_t kFirst = 256;
    for (std::size_t size = std::min(kFirst, before.size());; size *= 4) {
      const std::size_t from =
          size < before.size() ? raw_added_.free_place(before, before.size() - size) : 0;
      if (const auto lead = lead_of_end(before.substr(from), from == 0, workspace)) return *lead;
    }
  }

  // After an added token a text begins as after any other token of that kind in a whole text.
  // Elsewhere it is the middle of a text, which nothing is put before. Returns nothing where what
  // comes before this end of a text decides.
  std::optional<Lead> lead_of_end(std::string_view before, bool is_whole,
                                  Workspace& workspace) const {
    if (before.empty()) return Lead{};
    if (find_invalid_utf8(before) != std::string_view::npos) {
      return lead_of_end(replace_invalid_utf8(before), is_whole, workspace);
    }
    constexpr PartStart kMiddle{.is_text_start = false, .takes_prefix = false};
    constexpr PartStart kAfterToken{.is_text_start = false, .takes_prefix = true};
    const AddedToken* last = nullptr;
    std::size_t rest = 0;
    const auto look = [&](const AddedTokens& tokens, std::string_view text) {
      const std::size_t done = tokens.split(
          text, {}, [&](const AddedToken& token) { last = &token; },
          [&](std::size_t begin, std::size_t) { rest = begin; });
      return last != nullptr && done == text.size();
    };
    if (look(raw_added_, before)) {
      return Lead{.start = kAfterToken, .begins = true, .takes_space = last->strip_right};
    }
    if (normalized_added_.empty() && !pre_tokenizer_.puts_before_words()) {
      return Lead{.start = kMiddle, .begins = false};
    }
    if (last == nullptr && !is_whole) return {};
    last = nullptr;
    before.remove_prefix(rest);
    rest = 0;
    const std::string text =
        normalizer_.apply(before, {.begins = true, .ends = false}, workspace.match).text;
    if (!look(normalized_added_, text)) {
      return Lead{.start = kMiddle, .begins = false, .text = text.substr(rest)};
    }
    return Lead{.start = kAfterToken,
                .begins = false,
                .takes_space = last->strip_right && normalizer_.is_empty()};
  }

  /// Encodes added tokens and hands on what lies between them.
  void encode_raw(const Part& part, Workspace& workspace, Ids& ids) const {
    raw_added_.split(
        part.text, part.plain, [&](const AddedToken& token) { ids.push_back(token.id); },
        [&](std::size_t begin, std::size_t end) {
          const std::vector<TextRange> plain = within(part.plain, begin, end);
          normalize({.text = part.text.substr(begin, end - begin),
                     .plain = plain,
                     .start = start_at(begin, part),
                     .begins = begin > 0 || part.begins,
                     .ends = end < part.text.size() || part.ends},
                    workspace, ids);
        });
  }

  static PartStart start_at(std::size_t begin, const Part& part) {
    return begin == 0 ? part.start : PartStart{.is_text_start = false};
  }

  void normalize(const Part& part, Workspace& workspace, Ids& ids) const {
    if (normalizer_.is_empty()) return encode_normalized(part, workspace, ids);
    const Normalizer::Place place{.begins = part.begins, .ends = part.ends};
    const Normalizer::Text result = normalizer_.apply(part.text, place, workspace.match);
    if (result.text.size() > std::numeric_limits<std::int32_t>::max()) {
      throw DataError(fmt::format("{}: expected a text of at most {} bytes once normalized, got {}",
                                  name_, std::numeric_limits<std::int32_t>::max(),
                                  result.text.size()));
    }
    std::vector<TextRange> plain;
    if (!normalized_added_.empty()) {
      plain = mapped(part.plain, part.text, [&](std::string_view begin) {
        return normalizer_.apply(begin, place, workspace.match).text;
      });
    }
    Part normal{.text = result.text, .plain = plain, .start = part.start};
    normal.start.is_text_start &= result.keeps_start;
    encode_normalized(normal, workspace, ids);
  }

  void encode_normalized(const Part& part, Workspace& workspace, Ids& ids) const {
    WordEncoder words(*model_, workspace, ids);
    normalized_added_.split(
        part.text, part.plain, [&](const AddedToken& token) { ids.push_back(token.id); },
        [&](std::size_t begin, std::size_t end) {
          pre_tokenizer_.cut(part.text.substr(begin, end - begin), start_at(begin, part),
                             workspace.match, words);
        });
  }

  TokenizerSpec spec_;
  std::string name_;
  std::string fingerprint_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  std::unique_ptr<const TokenModel> model_;
  TokenDecoder decoder_;
  std::vector<std::string> texts_;      // of tokens, for the decoder
  std::vector<std::string> spellings_;  // of tokens, as bytes
  std::vector<bool> special_, is_there_, added_;
  bool prefixes_parts_;  // between added tokens, and not the whole text alone
  AddedTokens raw_added_, normalized_added_;
  AddedTokens spelled_added_;  // both, by their content
  mutable WorkspacePool workspaces_;
};

}  // namespace

std::shared_ptr<const Tokenizer> make_pipeline(TokenizerSpec spec, std::string name) {
  return std::make_shared<Pipeline>(std::move(spec), std::move(name));
}

}  // namespace prefopt::detail
