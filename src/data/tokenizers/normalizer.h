// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/split_pattern.h"
#include "data/tokenizers/spec.h"

namespace prefopt::detail {

/// Changes that a text undergoes before it is cut into words.
class Normalizer {
 public:
  /// Throws CheckpointError, led by `where`, for a step that cannot be made.
  Normalizer(const std::vector<NormalizerStep>& steps, std::string_view where);

  bool is_empty() const { return steps_.empty(); }

  /// Where a text that is normalized lies. What is put before a text, or stripped from an end of
  /// it, is so only where the text has that end.
  struct Place {
    bool begins = true, ends = true;
  };

  struct Text {
    std::string text;
    bool keeps_start = true;  ///< its first character comes from the first one of the original
  };

  Text apply(std::string_view text, Place place, SplitPattern::Scratch& scratch) const;

 private:
  using Step = std::function<void(Text&, Place, SplitPattern::Scratch&)>;
  std::vector<Step> steps_;
};

/// Puts `content` in the place of each match of a regular expression or text.
class Replacement {
 public:
  Replacement(const Replace& rule, std::string_view where);

  /// `starts_moved` is set where a replaced beginning no longer counts as the beginning.
  std::string apply(std::string_view text, SplitPattern::Scratch& scratch,
                    bool* starts_moved = nullptr) const;

 private:
  std::string content_;
  std::string literal_;  // searched for as it is, if not empty
  std::optional<SplitPattern> pattern_;
};

}  // namespace prefopt::detail
