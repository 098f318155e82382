// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/value_search.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/random.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using Ids = std::vector<std::int64_t>;

class ValueSearch {
 public:
  ValueSearch(Policy& policy, RewardPolicy& values, const Ids& prompt,
              const ValueSearchOptions& options, std::int64_t place)
      : policy_(policy), values_(values), prompt_(prompt), options_(options), place_(place) {}

  std::vector<ValuedCompletion> run() {
    const at::NoGradGuard no_grad;
    std::vector<ValuedCompletion> beams{{}};
    for (std::int64_t step = 0; !all_done(beams); ++step) beams = best_of(expanded(beams, step));
    return beams;
  }

 private:
  bool is_done(const ValuedCompletion& beam) const {
    return beam.ended || std::ssize(beam.completion) >= options_.sampling.max_new_tokens;
  }

  bool all_done(const std::vector<ValuedCompletion>& beams) const {
    return std::all_of(beams.begin(), beams.end(), [&](const auto& beam) { return is_done(beam); });
  }

  /// Beams that are done, and the steps drawn from the others.
  std::vector<ValuedCompletion> expanded(const std::vector<ValuedCompletion>& beams,
                                         std::int64_t step) const {
    std::vector<ValuedCompletion> all;
    for (std::size_t i = 0; i < beams.size(); ++i) {
      if (is_done(beams[i])) {
        all.push_back(beams[i]);
        continue;
      }
      for (const Ids& drawn : draw_steps(beams[i], step, static_cast<std::int64_t>(i))) {
        ValuedCompletion next{.completion = beams[i].completion};
        next.completion.insert(next.completion.end(), drawn.begin(), drawn.end());
        next.ended = is_end_token(next.completion.back(), options_.sampling);
        const bool is_known = std::any_of(all.begin(), all.end(), [&](const auto& other) {
          return other.completion == next.completion;
        });
        if (!is_known) all.push_back(std::move(next));
      }
    }
    return all;
  }

  std::vector<Ids> draw_steps(const ValuedCompletion& beam, std::int64_t step,
                              std::int64_t place_of_beam) const {
    Ids prompt = prompt_;
    prompt.insert(prompt.end(), beam.completion.begin(), beam.completion.end());
    SamplingOptions sampling = options_.sampling;
    sampling.max_new_tokens -= std::ssize(beam.completion);
    sampling.min_new_tokens =
        std::max<std::int64_t>(0, sampling.min_new_tokens - std::ssize(beam.completion));
    sampling.stop = {options_.step_end};
    auto seed = static_cast<std::uint64_t>(sampling.seed);
    for (const std::int64_t part : {place_, step, place_of_beam}) {
      seed = splitmix64(seed + static_cast<std::uint64_t>(part));
    }
    sampling.seed = static_cast<std::int64_t>(seed);
    return sample(policy_, std::vector<Ids>(static_cast<std::size_t>(options_.beams), prompt),
                  sampling);
  }

  std::vector<ValuedCompletion> best_of(std::vector<ValuedCompletion> beams) const {
    set_values(beams);
    std::stable_sort(beams.begin(), beams.end(),
                     [](const auto& a, const auto& b) { return a.value > b.value; });
    if (std::ssize(beams) > options_.beams) beams.resize(static_cast<std::size_t>(options_.beams));
    return beams;
  }

  void set_values(std::vector<ValuedCompletion>& beams) const {
    // The token that a state is asked about does not matter: its value is of what is before.
    const Ids any{0};
    std::vector<Ids> states;
    for (const ValuedCompletion& beam : beams) {
      Ids& state = states.emplace_back(prompt_);
      const std::ptrdiff_t end = beam.ended ? 1 : 0;
      state.insert(state.end(), beam.completion.begin(), beam.completion.end() - end);
    }
    std::vector<TokenSequence> sequences;
    for (const Ids& state : states) sequences.push_back({.prompt = state, .completion = any});
    const at::Tensor values = values_.token_values(make_batch(sequences).to(values_.device()))
                                  .to(at::kCPU, at::kDouble)
                                  .contiguous();
    for (std::size_t i = 0; i < beams.size(); ++i) {
      beams[i].value = values.const_data_ptr<double>()[i];
      if (std::isfinite(beams[i].value)) continue;
      throw NonFiniteError(
          fmt::format("value search: expected finite values, got {}", beams[i].value));
    }
  }

  Policy& policy_;
  RewardPolicy& values_;
  const Ids& prompt_;
  const ValueSearchOptions& options_;
  std::int64_t place_;
};

void check_options(const ValueSearchOptions& options) {
  if (options.beams < 1) {
    throw ConfigError(
        fmt::format("value search: expected at least one beam, got {}", options.beams));
  }
  if (options.step_end.empty()) {
    throw ConfigError("value search: expected a text that ends steps, got ''");
  }
  if (!options.sampling.stop.empty()) {
    throw ConfigError("value search: expected no stop strings but that of steps, got some");
  }
}

}  // namespace

std::vector<ValuedCompletion> search_by_values(Policy& policy, RewardPolicy& values,
                                               const std::vector<std::int64_t>& prompt,
                                               const ValueSearchOptions& options,
                                               std::int64_t place) {
  check_options(options);
  return ValueSearch(policy, values, prompt, options, place).run();
}

}  // namespace prefopt
