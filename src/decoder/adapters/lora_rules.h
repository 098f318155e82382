// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which modules an adapter changes, and how: the rules of PEFT's `check_target_module_exists` and
// `get_pattern_key`, by the names of modules alone.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"
#include "decoder/adapters/module_pattern.h"
#include "prefopt/decoder/lora_options.h"

namespace prefopt::detail {

/// A parsed ModuleNames.
class NameRule {
 public:
  /// Throws ConfigError, led by `where`, for neither of null, a text and a list of texts, and for a
  /// pattern that is not portable.
  NameRule(const ModuleNames& names, const std::string& where);

  bool is_pattern() const { return pattern_.has_value(); }
  const std::string& text() const { return text_; }  ///< of a pattern
  const std::vector<std::string>& names() const { return names_; }
  bool is_empty() const { return !pattern_ && names_.empty(); }
  /// Returns whether it is a name of the list.
  bool has(std::string_view module) const;
  /// Returns whether it is a name, or ends in ".name"; by a pattern, whether it matches.
  bool matches(std::string_view module) const;

 private:
  std::string text_;
  std::optional<ModulePattern> pattern_;
  std::vector<std::string> names_;
};

/// A kind of module that an adapter may be of.
enum class ModuleKind { kLinear, kEmbedding, kHead };

class LoraRules {
 public:
  /// Throws ConfigError, led by `where`, for options that are not understood.
  LoraRules(LoraOptions options, std::string where);

  const LoraOptions& options() const { return options_; }
  const std::string& where() const { return where_; }

  /// `kind` is that of a module that can have an adapter.
  bool targets(std::string_view module, std::optional<ModuleKind> kind) const;
  /// Returns whether a copy of the module is trained whole, by the rule of `modules_to_save` that a
  /// name ends in one of these.
  bool saves(std::string_view module) const;
  std::int64_t rank_of(std::string_view module) const;
  /// Returns alpha / rank, or alpha / sqrt(rank).
  double scale_of(std::string_view module) const;
  /// Returns the scale of modules that no pattern is about.
  double common_scale() const;
  /// Returns the first name or pattern that matches none of these; empty: each does.
  std::string find_unused(const std::vector<std::string>& modules) const;

  [[noreturn]] void fail(std::string_view option, std::string_view expected,
                         std::string_view got) const;

 private:
  struct PatternValue {
    std::string text;
    ModulePattern pattern;
    double value;
  };

  std::vector<PatternValue> pattern_values(std::string_view option, const std::string& json) const;
  void read_layers();
  bool is_excluded(std::string_view module) const;
  bool is_in_layers(std::string_view module) const;
  double scale(double alpha, std::int64_t rank) const;

  LoraOptions options_;
  std::string where_;
  NameRule targets_, excluded_;
  bool all_linear_ = false;
  std::vector<std::int64_t> layers_;  ///< empty: all
  std::vector<ModulePattern> layer_patterns_;
  std::vector<ModulePattern> saved_;
  std::vector<PatternValue> ranks_, alphas_;
};

}  // namespace prefopt::detail
