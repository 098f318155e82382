// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "core/json.h"
#include "prefopt/error.h"

namespace prefopt::detail {

inline constexpr std::uint64_t kMaxTokenIds = std::uint64_t{1} << 24;
// Ids that are no token: room for them is made, so a file must not ask for much of it.
inline constexpr std::uint64_t kMaxIdGaps = std::uint64_t{1} << 16;

/// A value of the file and its place, which leads every error: `PATH: model.vocab: …`.
class JsonNode {
 public:
  JsonNode(const SortedJson& json, std::string file) : json_(&json), file_(std::move(file)) {}

  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw CheckpointError(fmt::format("{}: expected {}, got {}", where(), expected, got));
  }
  [[noreturn]] void fail(std::string_view expected) const { fail(expected, shown()); }

  /// Short enough for an error.
  std::string shown() const {
    constexpr std::size_t kMaxShown = 60;
    if (json_->is_object() || json_->is_array()) return std::string(json_type_name(*json_));
    if (json_->is_string()) {
      const auto& text = json_->get_ref<const std::string&>();
      return text.size() > kMaxShown ? "a long text" : fmt::format("'{}'", shown_text(text));
    }
    return json_->dump();
  }

  bool is_null() const { return json_->is_null(); }
  bool is_list() const { return json_->is_array(); }
  bool is_text() const { return json_->is_string(); }
  bool is_object() const { return json_->is_object(); }
  const SortedJson& json() const { return *json_; }
  std::string where() const {
    return field_.empty() ? file_ : fmt::format("{}: {}", file_, field_);
  }

  /// A missing member reads as null.
  JsonNode member(const std::string& key) const {
    static const SortedJson null;
    if (!json_->is_object()) fail("an object");
    const auto found = json_->find(key);
    return {found == json_->end() ? null : *found, file_,
            field_.empty() ? key : fmt::format("{}.{}", field_, key)};
  }
  std::size_t size() const {
    if (!json_->is_array()) fail("a list");
    return json_->size();
  }
  JsonNode item(std::size_t i) const {
    return {(*json_)[i], file_, fmt::format("{}[{}]", field_, i)};
  }

  /// Members that are not named here would change results unseen.
  void only(std::initializer_list<std::string_view> known) const {
    if (!json_->is_object()) fail("an object");
    for (const auto& [key, value] : json_->items()) {
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        fail("no other fields than those known here", fmt::format("'{}'", shown_text(key)));
      }
    }
  }

  const std::string& text() const {
    if (!json_->is_string()) fail("text");
    return json_->get_ref<const std::string&>();
  }
  bool flag() const {
    if (!json_->is_boolean()) fail("true or false");
    return json_->get<bool>();
  }
  /// Expects one of these texts and returns its place among them.
  std::size_t choice(std::initializer_list<std::string_view> known) const {
    const auto found = std::find(known.begin(), known.end(), text());
    if (found != known.end()) return static_cast<std::size_t>(found - known.begin());
    fail(fmt::format("one of '{}'", fmt::join(known, "', '")));
  }
  bool flag_or(bool otherwise) const { return is_null() ? otherwise : flag(); }
  std::int64_t id() const {
    if (!json_->is_number_unsigned() || json_->get<std::uint64_t>() >= kMaxTokenIds) {
      fail(fmt::format("an id in [0, {})", kMaxTokenIds));
    }
    return json_->get<std::int64_t>();
  }
  std::string type() const { return member("type").text(); }

 private:
  JsonNode(const SortedJson& json, std::string file, std::string field)
      : json_(&json), file_(std::move(file)), field_(std::move(field)) {}

  const SortedJson* json_;
  std::string file_, field_;
};

}  // namespace prefopt::detail
