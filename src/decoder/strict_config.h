// SPDX-License-Identifier: Apache-2.0
#pragma once

// Configs of models and adapters that others wrote. Any field may change results, so one that is
// not known is refused by its name.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"

namespace prefopt::detail {

/// Far above any model, and low enough that products of two sizes fit in 64 bits.
inline constexpr std::int64_t kMaxDecoderSize = std::int64_t{1} << 30;

/// A field that would change results, and the one value that leaves them as they are computed here.
struct RequiredValue {
  std::string_view name;
  Json value;
};

/// The fields that a reader knows.
struct KnownFields {
  std::vector<std::string_view> understood;    ///< read by name
  std::span<const std::string_view> harmless;  ///< change no result
  std::vector<RequiredValue> required;

  bool contain(std::string_view name) const;
};

/// A config in whatever format. Errors are CheckpointErrors led by its path.
class StrictFile {
 public:
  explicit StrictFile(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }
  [[noreturn]] void fail(std::string_view expected, std::string_view got) const;
  /// `given` is the file's value of the field `name`, as the file spells it.
  void check_required(std::string_view name, const Json& required, const Json& given) const;

 private:
  std::string path_;
};

/// A config in JSON. Null is the same as absent: transformers writes it for "not set".
class StrictConfig : public StrictFile {
 public:
  /// Keeps a reference to `json`, which must be an object.
  StrictConfig(const Json& json, std::string path);

  /// Refuses names that are not known, unless their value says nothing, and values other than the
  /// required ones.
  void check(const KnownFields& known) const;

  /// Returns null if there is none.
  const Json* find(std::string_view name) const;
  /// Returns whether the name is there, be it with null.
  bool names(std::string_view name) const { return json_.contains(std::string(name)); }

  /// In [1, kMaxDecoderSize].
  std::int64_t size(std::string_view name, std::optional<std::int64_t> absent = {}) const;
  double number(std::string_view name, double absent) const;
  bool flag(std::string_view name, bool absent) const;
  std::int64_t whole(std::string_view name, const Json& given) const;
  std::int64_t token(std::string_view name) const;                ///< -1: none
  std::vector<std::int64_t> tokens(std::string_view name) const;  ///< one id or a list of ids

 private:
  const Json& json_;
};

/// Returns whether a field that is not known has a value for "not set" or "not used": null, false,
/// or an empty text, list or object.
bool says_nothing(const Json& value);

/// One id or a list of at least one, each read by `read`, each once.
template <class Read>
std::vector<std::int64_t> token_list(const Json& given, const Read& read) {
  std::vector<std::int64_t> ids;
  constexpr std::size_t kMost = 1024;
  if (!given.is_array() || given.empty() || given.size() > kMost) return {read(given)};
  for (const Json& id : given) {
    const std::int64_t value = read(id);
    if (std::find(ids.begin(), ids.end(), value) == ids.end()) ids.push_back(value);
  }
  return ids;
}

}  // namespace prefopt::detail
