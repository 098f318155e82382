// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizers/fingerprint.h"

#include <bit>
#include <cstdint>
#include <string_view>

#include "core/hash.h"

namespace prefopt::detail {
namespace {

/// Hashes the fields of each part, with the part's place in its variant.
class SpecHash {
 public:
  void add(std::string_view text) {
    const std::uint64_t size = text.size();
    hash_.update(&size, sizeof size);
    hash_.update(text);
  }
  void add(const std::string& text) { add(std::string_view(text)); }
  void add(std::int64_t number) { hash_.update(&number, sizeof number); }
  void add(bool flag) { add(std::int64_t{flag}); }
  void add(double number) { add(std::bit_cast<std::int64_t>(number)); }
  void add(std::size_t number) { add(static_cast<std::int64_t>(number)); }

  void add(const Prepend& step) { add(step.text); }
  void add(const Replace& step) {
    add(step.pattern);
    add(step.is_regex);
    add(step.content);
  }
  void add(const UnicodeForm& step) {
    add(step.composes);
    add(step.compatible);
  }
  void add(const Strip& step) {
    add(step.left);
    add(step.right);
  }
  void add(const Charsmap& step) { add(step.bytes); }
  void add(const Lowercase&) {}
  void add(const StripAccents&) {}
  void add(const Nmt&) {}

  void add(const Split& step) {
    add(step.pattern);
    add(step.is_regex);
    add(static_cast<std::int64_t>(step.behavior));
    add(step.invert);
  }
  void add(const Metaspace& step) {
    add(step.replacement);
    add(static_cast<std::int64_t>(step.scheme));
    add(step.splits);
  }
  void add(const ByteLevel& step) {
    add(step.add_prefix_space);
    add(step.uses_regex);
  }

  void add(const BpeSpec& model) {
    add(model.merges.size());
    for (const auto& [left, right] : model.merges) {
      add(left);
      add(right);
    }
    for (bool flag : {model.fuse_unknown, model.byte_fallback, model.ignore_merges}) add(flag);
  }
  void add(const UnigramSpec& model) {
    add(model.scores.size());
    for (double score : model.scores) add(score);
    add(model.byte_fallback);
  }
  void add(const AddedToken& token) {
    add(token.content);
    add(token.id);
    for (bool flag : {token.special, token.normalized, token.strip_left, token.strip_right,
                      token.single_word}) {
      add(flag);
    }
  }

  template <class... Parts>
  void add(const std::variant<Parts...>& part) {
    add(part.index());
    std::visit([this](const auto& value) { add(value); }, part);
  }
  template <class Part>
  void add(const std::vector<Part>& parts) {
    add(parts.size());
    for (const Part& part : parts) add(part);
  }

  std::string hex() { return hash_.hex(); }

 private:
  ContentHash hash_;
};

}  // namespace

std::string fingerprint_of(const TokenizerSpec& spec) {
  SpecHash hash;
  hash.add(std::string_view("tokenizer 3"));
  hash.add(spec.tokens);
  hash.add(spec.model);
  hash.add(spec.added);
  hash.add(spec.normalizer);
  hash.add(spec.pre_tokenizer);
  for (const std::int64_t id : {spec.unknown_id, spec.bos_id, spec.eos_id}) hash.add(id);
  return hash.hex();
}

}  // namespace prefopt::detail
