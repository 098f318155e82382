// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>

#include "prefopt/losses/loss.h"
#include "prefopt/losses/pair_logps.h"

namespace prefopt {

/// One array of a BasicPairLogps: for everything that treats them alike (checks, gradients, cutting
/// a step up and putting it together).
template <class T>
struct PairField {
  using Needs = LossRequirements;
  enum class Kind {
    kLogps,   ///< of the dtype of chosen_logps
    kNumber,  ///< counts, labels and columns: any floating dtype, or int64
  };

  const char* name;
  T BasicPairLogps<T>::*value;
  T BasicLossOutput<T>::*gradient;  ///< null: no derivative is taken
  Kind kind;
  bool per_sample;  ///< [batch * samples_per_prompt] in place of [batch]
  bool (*needed)(const Needs&);
};

template <class T>
constexpr auto make_pair_fields() {
  using In = BasicPairLogps<T>;
  using Out = BasicLossOutput<T>;
  using Field = PairField<T>;
  using Needs = LossRequirements;
  constexpr auto kLogps = Field::Kind::kLogps;
  constexpr auto kNumber = Field::Kind::kNumber;
  const auto row = [](const char* name, T In::*value, T Out::*gradient, auto needed) {
    return Field{name, value, gradient, kLogps, false, needed};
  };
  const auto number = [](const char* name, T In::*value, auto needed) {
    return Field{name, value, nullptr, kNumber, false, needed};
  };
  constexpr auto kSampled = [](const Needs& n) { return n.samples_per_prompt > 0; };
  constexpr auto kHead = [](const Needs& n) { return n.head_logps; };
  constexpr auto kHeadOfReference = [](const Needs& n) { return n.head_logps && n.reference; };
  constexpr auto kSumSquares = [](const Needs& n) { return n.log_sum_p_squared; };
  constexpr auto kSeqKl = [](const Needs& n) { return n.seq_kl; };
  constexpr auto kLimited = [](const Needs& n) { return n.limits.has_value(); };
  constexpr auto kLimitedPair = [](const Needs& n) { return n.limits && n.rejected; };
  constexpr auto kLimitedKl = [](const Needs& n) { return n.limits && n.kl_logps; };
  constexpr auto kPrompt = [](const Needs& n) { return n.prompt; };
  constexpr auto kKl = [](const Needs& n) { return n.kl_logps; };
  constexpr auto kWinRates = [](const Needs& n) { return n.win_rates; };
  return std::array{
      row("chosen_logps", &In::chosen_logps, &Out::grad_chosen, [](const Needs&) { return true; }),
      row("rejected_logps", &In::rejected_logps, &Out::grad_rejected,
          [](const Needs& n) { return n.rejected; }),
      row("ref_chosen_logps", &In::ref_chosen_logps, nullptr,
          [](const Needs& n) { return n.reference; }),
      row("ref_rejected_logps", &In::ref_rejected_logps, nullptr,
          [](const Needs& n) { return n.reference && n.rejected; }),
      number("chosen_lens", &In::chosen_lens, [](const Needs& n) { return n.lens; }),
      number("rejected_lens", &In::rejected_lens,
             [](const Needs& n) { return n.lens && n.rejected; }),
      row("chosen_head_logps", &In::chosen_head_logps, &Out::grad_chosen_head, kHead),
      row("rejected_head_logps", &In::rejected_head_logps, &Out::grad_rejected_head, kHead),
      row("ref_chosen_head_logps", &In::ref_chosen_head_logps, nullptr, kHeadOfReference),
      row("ref_rejected_head_logps", &In::ref_rejected_head_logps, nullptr, kHeadOfReference),
      row("chosen_log_sum_p_squared", &In::chosen_log_sum_p_squared, nullptr, kSumSquares),
      row("rejected_log_sum_p_squared", &In::rejected_log_sum_p_squared, nullptr, kSumSquares),
      row("chosen_seq_kl", &In::chosen_seq_kl, &Out::grad_chosen_seq_kl, kSeqKl),
      row("rejected_seq_kl", &In::rejected_seq_kl, &Out::grad_rejected_seq_kl, kSeqKl),
      row("chosen_limited_logratios", &In::chosen_limited_logratios, &Out::grad_chosen_limited,
          kLimited),
      row("rejected_limited_logratios", &In::rejected_limited_logratios,
          &Out::grad_rejected_limited, kLimitedPair),
      row("kl_limited_logratios", &In::kl_limited_logratios, nullptr, kLimitedKl),
      row("chosen_confident_logps", &In::chosen_confident_logps, &Out::grad_confident,
          [](const Needs& n) { return n.confident; }),
      row("prompt_logps", &In::prompt_logps, &Out::grad_prompt, kPrompt),
      number("prompt_lens", &In::prompt_lens, kPrompt),
      row("gold_logps", &In::gold_logps, &Out::grad_gold, [](const Needs& n) { return n.gold; }),
      number("gold_lens", &In::gold_lens, [](const Needs& n) { return n.gold && n.lens; }),
      number("labels", &In::labels, [](const Needs& n) { return n.labels; }),
      row("kl_logps", &In::kl_logps, nullptr, kKl),
      row("ref_kl_logps", &In::ref_kl_logps, nullptr, kKl),
      number("margins", &In::margins, [](const Needs& n) { return n.margins; }),
      number("weights", &In::weights, [](const Needs& n) { return n.weights; }),
      number("label_probs", &In::label_probs, [](const Needs& n) { return n.label_probs; }),
      number("chosen_win_rates", &In::chosen_win_rates, kWinRates),
      number("rejected_win_rates", &In::rejected_win_rates, kWinRates),
      Field{"sample_logps", &In::sample_logps, &Out::grad_samples, kLogps, true, kSampled},
      Field{"ref_sample_logps", &In::ref_sample_logps, nullptr, kLogps, true, kSampled},
      Field{"sample_lens", &In::sample_lens, nullptr, kNumber, true,
            [](const Needs& n) { return n.samples_per_prompt > 0 && n.lens; }},
  };
}

template <class T>
inline constexpr auto kPairFields = make_pair_fields<T>();

}  // namespace prefopt
