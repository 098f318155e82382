// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>

/// The arrays that a loss may ask for, one line each. Everything that handles them (the structs in
/// pair_logps.h, the trainer, the command, the checks, the documentation) is made from these lines.
///
///   PLAIN(name, kind, of, key, neutral, meaning)
///   DIFFERENTIABLE(name, gradient, kind, of, key, neutral, meaning)
///
/// `name` is the member of PairLogps and the enumerator of Input, `gradient` the member of
/// LossOutput with the derivative, `kind` an InputKind and `of` an InputOf. `key` is the name in a
/// row of `prefopt loss`, empty for inputs made from lists of token log-probs. `neutral` is the
/// value for the anchors of a loss: five-token completions with log-prob -10 under both models.
#define PREFOPT_LOSS_INPUTS(PLAIN, DIFFERENTIABLE)                                                  \
  DIFFERENTIABLE(chosen_logps, grad_chosen, kLogps, kChosen, "chosen_logps", -10,                   \
                 "log π(y_w) of the chosen completion; of a labelled row, `completion_logps`")      \
  DIFFERENTIABLE(rejected_logps, grad_rejected, kLogps, kRejected, "rejected_logps", -10,           \
                 "log π(y_l) of the rejected completion")                                           \
  PLAIN(ref_chosen_logps, kReferenceLogps, kChosen, "ref_chosen_logps", -10,                        \
        "the same of the reference; of a labelled row, `ref_completion_logps`")                     \
  PLAIN(ref_rejected_logps, kReferenceLogps, kRejected, "ref_rejected_logps", -10,                  \
        "the same of the reference")                                                                \
  PLAIN(chosen_lens, kCount, kChosen, "chosen_len", 5,                                              \
        "tokens of the chosen completion; not needed with a list")                                  \
  PLAIN(rejected_lens, kCount, kRejected, "rejected_len", 5, "tokens of the rejected completion")   \
  DIFFERENTIABLE(chosen_overlap_logps, grad_chosen_overlap, kLogps, kChosen, "", -10,               \
                 "the sum over the first min(n_w, n_l) tokens (LD-DPO), taken from the lists")      \
  DIFFERENTIABLE(rejected_overlap_logps, grad_rejected_overlap, kLogps, kRejected, "", -10,         \
                 "the same of the rejected completion")                                             \
  PLAIN(ref_chosen_overlap_logps, kReferenceLogps, kChosen, "", -10, "the same of the reference")   \
  PLAIN(ref_rejected_overlap_logps, kReferenceLogps, kRejected, "", -10,                            \
        "the same of the reference")                                                                \
  PLAIN(chosen_log_sum_p_squared, kByProduct, kChosen, "chosen_log_sum_sq_probs", -10,              \
        "sum over tokens of log Σ_v π(v)² (WPO)")                                                   \
  PLAIN(rejected_log_sum_p_squared, kByProduct, kRejected, "rejected_log_sum_sq_probs", -10,        \
        "the same of the rejected completion")                                                      \
  DIFFERENTIABLE(chosen_seq_kl, grad_chosen_seq_kl, kComparison, kChosen, "chosen_seq_kl", 0,       \
                 "sum over tokens of KL(π_ref ‖ π) over the vocabulary (TDPO)")                     \
  DIFFERENTIABLE(rejected_seq_kl, grad_rejected_seq_kl, kComparison, kRejected, "rejected_seq_kl",  \
                 0, "the same of the rejected completion")                                          \
  DIFFERENTIABLE(chosen_limited_logratios, grad_chosen_limited, kComparison, kChosen, "", 0,        \
                 "the sum over tokens of log(π/π_ref) within humanline's limits, taken from the " \
                 "lists")                                                                           \
  DIFFERENTIABLE(rejected_limited_logratios, grad_rejected_limited, kComparison, kRejected, "", 0,  \
                 "the same of the rejected completion")                                             \
  PLAIN(kl_limited_logratios, kComparison, kOther, "", 0,                                           \
        "the same of another row's completion under this row's prompt")                             \
  DIFFERENTIABLE(chosen_confident_logps, grad_confident, kLogps, kChosen, "", -10,                  \
                 "the sum over tokens of π log π (DFT), π without gradient, taken from the list")   \
  DIFFERENTIABLE(prompt_logps, grad_prompt, kLogps, kPrompt, "prompt_logps", -10,                   \
                 "log π of the prompt's own tokens, from the second on")                            \
  PLAIN(prompt_lens, kCount, kPrompt, "prompt_len", 5,                                              \
        "how many these are; not needed with a list")                                               \
  DIFFERENTIABLE(gold_logps, grad_gold, kLogps, kGold, "gold_logps", -10,                           \
                 "log π of a third completion that is only imitated (TPO)")                         \
  PLAIN(gold_lens, kCount, kGold, "gold_len", 5, "its tokens; not needed with a list")              \
  PLAIN(labels, kLabel, kRow, "label", 1, "true or 1: desirable, false or 0: not")                  \
  PLAIN(kl_logps, kLogps, kOther, "kl_logps", -10,                                                  \
        "log π of another row's completion under this row's prompt (KTO)")                          \
  PLAIN(ref_kl_logps, kReferenceLogps, kOther, "ref_kl_logps", -10, "the same of the reference")    \
  PLAIN(margins, kNumber, kRow, "margin", 0, "given reward gap r_w − r_l")                          \
  PLAIN(weights, kWeight, kRow, "weight", 1, "given weight of the row")                             \
  PLAIN(label_probs, kProbability, kRow, "label_prob", 1,                                           \
        "probability that the chosen completion is the better one")                                 \
  PLAIN(chosen_win_rates, kProbability, kChosen, "chosen_win_rate", 0.5,                            \
        "probability that y_w beats a completion of the policy")                                    \
  PLAIN(rejected_win_rates, kProbability, kRejected, "rejected_win_rate", 0.5, "the same of y_l")   \
  PLAIN(advantages, kNumber, kRow, "advantage", 0,                                                  \
        "by how much the row's completion is better than one of the policy")                        \
  PLAIN(from_reference, kSide, kRow, "from_reference", 2,                                           \
        "the completion that the reference drew: 1 chosen, 2 rejected, 0 neither")                  \
  PLAIN(groups, kGroup, kRow, "group", 0,                                                           \
        "a number that rows of one prompt have in common; in training made of the prompts")         \
  DIFFERENTIABLE(sample_logps, grad_samples, kLogps, kSample, "sample_logps", -10,                  \
                 "log π of fresh samples, a list a row")                                            \
  PLAIN(ref_sample_logps, kReferenceLogps, kSample, "ref_sample_logps", -10,                        \
        "the same of the reference")                                                                \
  PLAIN(sample_lens, kCount, kSample, "", 5, "their tokens, taken from the lists")

namespace prefopt {

/// One array that a loss may ask for, named as the member of PairLogps.
enum class Input : std::uint8_t {
#define PREFOPT_ENUMERATOR(name, ...) name,
  PREFOPT_LOSS_INPUTS(PREFOPT_ENUMERATOR, PREFOPT_ENUMERATOR)
#undef PREFOPT_ENUMERATOR
};

/// The source of an input's numbers.
enum class InputKind : std::uint8_t {
  kLogps,           ///< the policy's log-probs of the tokens of InputOf
  kReferenceLogps,  ///< the reference's
  kByProduct,       ///< another sum over those tokens of the policy's distributions
  kComparison,      ///< a sum that needs both models
  kCount,           ///< a number of tokens
  kLabel,           ///< given by the data row: 1 or 0
  kNumber,          ///< given by the data row
  kWeight,          ///< given by the data row, at least 0
  kProbability,     ///< given by the data row, from 0 to 1
  kSide,            ///< given by the data row: 0, 1 for chosen or 2 for rejected
  kGroup,           ///< equal for rows of one prompt
};

/// The tokens that an input is about.
enum class InputOf : std::uint8_t {
  kChosen,
  kRejected,
  kGold,
  kPrompt,
  kOther,   ///< another row's completion under this row's prompt
  kSample,  ///< fresh samples: [batch * samples_per_prompt] in place of [batch]
  kRow,     ///< the row as a whole, no tokens
};

/// One line of the table.
struct InputInfo {
  Input input;
  std::string_view name;
  InputKind kind;
  InputOf of;
  std::string_view key;      ///< in a row of `prefopt loss`; empty: taken from lists
  double neutral;            ///< value for anchors
  std::string_view meaning;  ///< for the documentation
};

inline constexpr std::array kInputs = {
#define PREFOPT_INFO(name, kind, of, key, neutral, meaning) \
  InputInfo{Input::name, #name, InputKind::kind, InputOf::of, key, neutral, meaning},
#define PREFOPT_INFO_OF_GRADIENT(name, gradient, kind, of, key, neutral, meaning) \
  PREFOPT_INFO(name, kind, of, key, neutral, meaning)
    PREFOPT_LOSS_INPUTS(PREFOPT_INFO, PREFOPT_INFO_OF_GRADIENT)
#undef PREFOPT_INFO
#undef PREFOPT_INFO_OF_GRADIENT
};
static_assert(kInputs.size() <= 64, "an InputSet has 64 bits");

/// A set of inputs.
class InputSet {
 public:
  constexpr InputSet() = default;
  constexpr InputSet(Input input) : bits_(bit(input)) {}  // NOLINT: one input is a set
  constexpr InputSet(std::initializer_list<Input> inputs) {
    for (const Input input : inputs) bits_ |= bit(input);
  }

  constexpr bool has(Input input) const { return (bits_ & bit(input)) != 0; }
  /// Returns whether the sets have an input in common.
  constexpr bool has_any(InputSet other) const { return (bits_ & other.bits_) != 0; }
  /// Returns whether any input of `kind` is in the set.
  constexpr bool has(InputKind kind) const {
    for (const InputInfo& info : kInputs) {
      if (info.kind == kind && has(info.input)) return true;
    }
    return false;
  }
  /// Returns whether any input of these tokens is in the set.
  constexpr bool has(InputOf of) const {
    for (const InputInfo& info : kInputs) {
      if (info.of == of && has(info.input)) return true;
    }
    return false;
  }

  constexpr InputSet& operator|=(InputSet other) {
    bits_ |= other.bits_;
    return *this;
  }
  friend constexpr InputSet operator|(InputSet a, InputSet b) { return a |= b; }
  /// Returns the inputs of `a` that are not in `b`.
  friend constexpr InputSet operator-(InputSet a, InputSet b) {
    a.bits_ &= ~b.bits_;
    return a;
  }
  friend constexpr bool operator==(InputSet, InputSet) = default;

 private:
  static constexpr std::uint64_t bit(Input input) {
    return std::uint64_t{1} << static_cast<unsigned>(input);
  }

  std::uint64_t bits_ = 0;
};

/// Returns `inputs` if `condition` holds, else the empty set.
constexpr InputSet when(bool condition, InputSet inputs) { return condition ? inputs : InputSet(); }

/// The policy's log-probs of a pair, and the reference's.
inline constexpr InputSet kPairLogps = {Input::chosen_logps, Input::rejected_logps};
inline constexpr InputSet kPairReferenceLogps = {Input::ref_chosen_logps,
                                                 Input::ref_rejected_logps};
inline constexpr InputSet kPairLens = {Input::chosen_lens, Input::rejected_lens};
/// The log-probs of fresh samples under both models.
inline constexpr InputSet kSampleLogps = {Input::sample_logps, Input::ref_sample_logps};

}  // namespace prefopt
