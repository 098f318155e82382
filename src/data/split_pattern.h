// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace prefopt::detail {

/// A regular expression of a pre-tokenizer, matched by PCRE2 over UTF-8.
///
/// `tokenizers` matches with Oniguruma, so only what means the same in both is let in: literals,
/// sets without sets in them, general categories (`\p{L}`, `\P{Nd}`), `\s \S \d \r \n \t \f`,
/// groups, `(?i:…)`, lookahead, and the quantifiers `? * + {n,m}`, the first three lazy or
/// possessive too. `\s` becomes Unicode's White_Space, as Oniguruma has it.
class SplitPattern {
 public:
  /// Throws CheckpointError, led by `where`, for anything else and for what matches the empty text.
  SplitPattern(std::string_view pattern, std::string_view where);

  /// The memory that a thread needs to match; one serves all patterns.
  class Scratch {
   public:
    Scratch();

   private:
    friend class SplitPattern;
    struct Free {
      void operator()(void* data) const;
    };
    std::unique_ptr<void, Free> data_;
  };

  struct Match {
    std::size_t begin, end;
  };
  /// Returns the first match that begins at `from` or later. `text` has to be UTF-8. Throws
  /// DataError where PCRE2's limits end the search.
  std::optional<Match> find(std::string_view text, std::size_t from, Scratch& scratch) const;

 private:
  std::string pattern_;
  std::shared_ptr<const void> code_;
};

/// Matches `text` and nothing else.
std::string quote_pattern(std::string_view text);

}  // namespace prefopt::detail
