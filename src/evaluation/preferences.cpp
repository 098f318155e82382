// SPDX-License-Identifier: Apache-2.0
#include "prefopt/evaluation/preferences.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "policy/token_range.h"
#include "prefopt/error.h"
#include "prefopt/math/functions.h"
#include "prefopt/policy/sequence_logps.h"

namespace prefopt {
namespace {

constexpr std::string_view kWhere = "evaluate_preferences";

void check(const std::vector<TokenRow>& pairs, const std::vector<PairSums>& policy,
           const std::vector<PairSums>& reference, const PreferenceOptions& options) {
  if (!(options.beta > 0) || !std::isfinite(options.beta)) {
    throw ConfigError(fmt::format("{}: expected beta > 0, got {}", kWhere, options.beta));
  }
  if (pairs.empty()) throw DataError(fmt::format("{}: expected a pair, got none", kWhere));
  if (policy.size() != pairs.size() || reference.size() != pairs.size()) {
    throw ShapeError(
        fmt::format("{}: expected log-probs of {} pairs, got {} of the policy and {} "
                    "of the reference",
                    kWhere, pairs.size(), policy.size(), reference.size()));
  }
}

/// The pairs with a margin above 0 among some of them.
class RightAnswers {
 public:
  void count(bool is_right) {
    ++pairs_;
    right_ += is_right ? 1 : 0;
  }
  PartialRate rate() const {
    constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
    if (pairs_ == 0) return {.pairs = 0, .rate = {kNone, kNone, kNone}};
    const double share = static_cast<double>(right_) / static_cast<double>(pairs_);
    return {.pairs = pairs_, .rate = wilson_rate(share, static_cast<double>(pairs_))};
  }

 private:
  std::int64_t pairs_ = 0;
  std::int64_t right_ = 0;
};

}  // namespace

namespace {

/// The values that `measure` gives for `batch_size` pairs at a time: [2 · pairs], chosen first.
template <class Measure>
std::vector<PairSums> measure_pairs(const Policy& policy, const std::vector<TokenRow>& pairs,
                                    std::int64_t batch_size, std::string_view where,
                                    std::string_view what, Measure&& measure) {
  if (batch_size < 1) {
    throw ConfigError(
        fmt::format("{}: expected a batch_size of at least 1, got {}", where, batch_size));
  }
  detail::check_token_range(pairs, policy.vocab_size(), where);
  const at::NoGradGuard no_grad;
  std::vector<PairSums> sums;
  sums.reserve(pairs.size());
  for (std::size_t first = 0; first < pairs.size(); first += static_cast<std::size_t>(batch_size)) {
    const std::size_t count = std::min(static_cast<std::size_t>(batch_size), pairs.size() - first);
    const auto begin = pairs.begin() + static_cast<std::ptrdiff_t>(first);
    const at::Tensor values = measure({begin, begin + static_cast<std::ptrdiff_t>(count)});
    const at::Tensor here = values.cpu().contiguous();
    const double* value = here.const_data_ptr<double>();
    for (std::size_t i = 0; i < count; ++i) {
      const PairSums sum{.chosen = value[i], .rejected = value[count + i]};
      if (!std::isfinite(sum.chosen) || !std::isfinite(sum.rejected)) {
        throw NonFiniteError(fmt::format(
            "{}: expected finite {}, got {} and {} for pair {}; the model's weights may be broken",
            where, what, std::abs(sum.chosen), std::abs(sum.rejected), first + i + 1));
      }
      sums.push_back(sum);
    }
  }
  return sums;
}

}  // namespace

std::vector<PairSums> pair_sums(Policy& policy, const std::vector<TokenRow>& pairs,
                                std::int64_t batch_size) {
  return measure_pairs(policy, pairs, batch_size, "pair_sums", "log-probs",
                       [&](const std::vector<TokenRow>& part) {
                         const TokenBatch batch = make_pair_batch(part).to(policy.device());
                         return sequence_logps(policy, batch).logps;
                       });
}

std::vector<PairSums> pair_rewards(RewardPolicy& model, const std::vector<TokenRow>& pairs,
                                   std::int64_t batch_size) {
  return measure_pairs(model, pairs, batch_size, "pair_rewards", "rewards",
                       [&](const std::vector<TokenRow>& part) { return model.rewards(part); });
}

PreferenceEvaluation evaluate_preferences(const std::vector<TokenRow>& pairs,
                                          const std::vector<PairSums>& policy,
                                          const std::vector<PairSums>& reference,
                                          const PreferenceOptions& options) {
  check(pairs, policy, reference, options);
  std::vector<double> chosen_rewards, rejected_rewards, margins, probabilities, length_differences;
  RightAnswers all, shorter, as_long, longer;
  std::int64_t ties = 0;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    chosen_rewards.push_back(options.beta * (policy[i].chosen - reference[i].chosen));
    rejected_rewards.push_back(options.beta * (policy[i].rejected - reference[i].rejected));
    const double margin = chosen_rewards.back() - rejected_rewards.back();
    margins.push_back(margin);
    probabilities.push_back(math::sigmoid(margin));
    const auto longer_by = counted_tokens(pairs[i].chosen, pairs[i].chosen_mask) -
                           counted_tokens(pairs[i].rejected, pairs[i].rejected_mask);
    length_differences.push_back(static_cast<double>(longer_by));
    ties += margin == 0 ? 1 : 0;
    all.count(margin > 0);
    (longer_by < 0 ? shorter : longer_by > 0 ? longer : as_long).count(margin > 0);
  }
  return {.pairs = std::ssize(pairs),
          .ties = ties,
          .accuracy = all.rate().rate,
          .margin = bootstrap_mean(margins, options.seed),
          .chosen_reward = bootstrap_mean(chosen_rewards, options.seed),
          .rejected_reward = bootstrap_mean(rejected_rewards, options.seed),
          .calibration = calibrate(probabilities, options.bins),
          .length_correlation = correlation(margins, length_differences),
          .shorter = shorter.rate(),
          .as_long = as_long.rate(),
          .longer = longer.rate()};
}

}  // namespace prefopt
