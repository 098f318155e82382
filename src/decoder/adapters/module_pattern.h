// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace prefopt::detail {

/// Returns the place of the first thing in a pattern of Python's `re` that PCRE2 reads otherwise,
/// or that neither reads; none: both match the same names of modules.
std::optional<std::size_t> find_not_portable(std::string_view pattern);

/// A pattern of Python's `re` for names of modules, which are ASCII in one line.
class ModulePattern {
 public:
  /// `pattern` is made of portable ones. Throws ConfigError, led by `where`, where it cannot be
  /// compiled.
  ModulePattern(std::string pattern, std::string where);

  /// As `re.fullmatch`. Throws ConfigError where the search has no end in sight.
  bool matches(std::string_view name) const;
  /// As `re.match`: returns the group named `idx`, empty without a match.
  std::string index_in(std::string_view name) const;

 private:
  std::string pattern_, where_;
  std::shared_ptr<const void> code_;
};

}  // namespace prefopt::detail
