// SPDX-License-Identifier: Apache-2.0
#pragma once

// The demo's reward: a short, direct answer in plain prose. Each term is a rule that a reader can
// check by eye, worth 0 to 1, and the reward is their mean; an answer without a word gets 0. A word
// is a run of letters, digits and apostrophes. A sentence ends at `.`, `!` or `?` in front of white
// space and at the end of a line, and has two words or more.

#include <array>
#include <string_view>
#include <utility>

namespace demo {

struct RewardTerms {
  /// 1 if it came to its end within the token limit, and that end is a sentence's.
  double complete = 0;
  /// 1 for eight words or more in one to three sentences; a third less for each sentence more.
  double concise = 0;
  /// 1 without Markdown; half less for each line that is a list item, heading or table row, or
  /// holds `**` or a backquote.
  double plain = 0;
  /// 1 unless it opens with a filler such as "Sure", "Of course", "I'm" or "Here is".
  double direct = 0;
  /// 1 if it mentions at least half of the question's content words (four letters or more, no
  /// function words, recognized by their first five letters); in proportion below that.
  double on_topic = 0;
  /// Share of its runs of three words that are no repetition of an earlier one.
  double varied = 0;

  std::array<std::pair<std::string_view, double>, 6> named() const;
  double total() const;
};

/// `ended`: the end token was drawn within the limit.
RewardTerms reward_terms(std::string_view prompt, std::string_view response, bool ended);

}  // namespace demo
