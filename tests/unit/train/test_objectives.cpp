// SPDX-License-Identifier: Apache-2.0

// Every registered loss through the trainer: what it is given is computed here from the policy's
// formula, and the result must not depend on how the step is cut up.

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/train/trainer.h"
#include "support/bigram_policy.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/loss_oracle.h"
#include "support/pairs.h"

namespace prefopt {
namespace {

using nlohmann::json;
using namespace testing_support;
using Tokens = std::vector<std::int64_t>;

/// The step's rows with everything that any loss asks for.
std::vector<TokenPair> full_rows() {
  std::vector<TokenPair> rows = pairs();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto x = static_cast<double>(i);
    rows[i].gold = {static_cast<std::int64_t>(i), 1, 2};
    rows[i].columns[Column::kLabel] = i % 2 == 0 ? 1 : 0;
    rows[i].columns[Column::kMargin] = 0.5 - 0.3 * x;
    rows[i].columns[Column::kWeight] = 0.2 + 0.4 * x;
    rows[i].columns[Column::kLabelProb] = 0.95 - 0.2 * x;
    rows[i].columns[Column::kChosenWinRate] = 0.9 - 0.1 * x;
    rows[i].columns[Column::kRejectedWinRate] = 0.1 + 0.05 * x;
  }
  // The trainer puts rows of like length side by side for policies that pad.
  std::stable_sort(rows.begin(), rows.end(), [](const TokenPair& a, const TokenPair& b) {
    const auto width = [](const TokenPair& row) {
      return row.prompt.size() + std::max(row.chosen.size(), row.rejected.size());
    };
    return width(a) < width(b);
  });
  return rows;
}

/// The same, some of whose completions have tokens that count more or less than others.
std::vector<TokenPair> weighted_rows() {
  std::vector<TokenPair> rows = full_rows();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto weights = [&](const Tokens& completion, double first) {
      TokenWeights each;
      for (std::size_t t = 0; t < completion.size(); ++t) {
        each.push_back(first + 0.3 * static_cast<double>(t % 3) + 0.1 * static_cast<double>(i));
      }
      return each;
    };
    if (i != 1) rows[i].chosen_weights = weights(rows[i].chosen, 0);
    if (i != 2) rows[i].rejected_weights = weights(rows[i].rejected, 0.5);
    rows[i].gold_weights = weights(rows[i].gold, 0.7);
  }
  return rows;
}

struct Side {
  Tokens TokenPair::*tokens;
  TokenWeights TokenPair::*weights;
};
constexpr Side kChosen{&TokenPair::chosen, &TokenPair::chosen_weights};
constexpr Side kRejected{&TokenPair::rejected, &TokenPair::rejected_weights};
constexpr Side kGold{&TokenPair::gold, &TokenPair::gold_weights};

/// Weighted sum of value(from, to) over the first `count` tokens of a completion.
template <class Value>
double sum_over(const Tokens& prompt, const TokenPair& row, Side side, std::size_t count,
                Value value) {
  double sum = 0;
  auto from = prompt.back();
  for (std::size_t t = 0; t < count; ++t) {
    const auto to = (row.*side.tokens)[t];
    const TokenWeights& weights = row.*side.weights;
    sum += (weights.empty() ? 1 : weights[t]) * value(from, to);
    from = to;
  }
  return sum;
}

double log_sum_squares(const BigramPolicy& policy, std::int64_t from) {
  double sum = 0;
  for (std::int64_t v = 0; v < kVocab; ++v) sum += std::exp(2 * policy.logp(from, v));
  return std::log(sum);
}

double kl(const BigramPolicy& reference, const BigramPolicy& policy, std::int64_t from) {
  double sum = 0;
  for (std::int64_t v = 0; v < kVocab; ++v) {
    sum += std::exp(reference.logp(from, v)) * (reference.logp(from, v) - policy.logp(from, v));
  }
  return sum;
}

/// `held` is the policy whose probabilities have no gradient (DFT); `limits` are humanline's.
ExactPairLogps exact_inputs(const BigramPolicy& policy, const BigramPolicy& reference,
                            const std::vector<TokenPair>& rows, const LossRequirements& needs,
                            const BigramPolicy& held) {
  const bool with_rejected = needs.rejected;
  const LogRatioLimits limits = needs.limits.value_or(LogRatioLimits{});
  const auto column = [&](auto value) {
    Eigen::ArrayXd x(static_cast<Eigen::Index>(rows.size()));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      x[static_cast<Eigen::Index>(i)] = static_cast<double>(value(rows[i], i));
    }
    return x;
  };
  using Row = const TokenPair&;
  const auto all_of = [](Row row, Side side) { return (row.*side.tokens).size(); };
  const auto head_of = [&](Row row, Side side) {
    return with_rejected ? std::min(row.chosen.size(), row.rejected.size()) : all_of(row, side);
  };
  const auto logp_under = [](const BigramPolicy& of) {
    return [&of](std::int64_t from, std::int64_t to) { return of.logp(from, to); };
  };
  const auto sums = [&](const BigramPolicy& of, Side side) {
    return column([&](Row row, std::size_t) {
      return sum_over(row.prompt, row, side, all_of(row, side), logp_under(of));
    });
  };
  const auto heads = [&](const BigramPolicy& of, Side side) {
    return column([&](Row row, std::size_t) {
      return sum_over(row.prompt, row, side, head_of(row, side), logp_under(of));
    });
  };
  const auto lens = [&](Side side) {
    return column([&](Row row, std::size_t) { return all_of(row, side); });
  };
  const auto per_token = [&](Side side, auto value) {
    return column([&](Row row, std::size_t) {
      return sum_over(row.prompt, row, side, all_of(row, side),
                      [&](std::int64_t from, std::int64_t) { return value(from); });
    });
  };
  const auto squares = [&](std::int64_t from) { return log_sum_squares(policy, from); };
  const auto divergence = [&](std::int64_t from) { return kl(reference, policy, from); };
  ExactPairLogps in;
  in.chosen_logps = sums(policy, kChosen);
  in.rejected_logps = sums(policy, kRejected);
  in.gold_logps = sums(policy, kGold);
  in.ref_chosen_logps = sums(reference, kChosen);
  in.ref_rejected_logps = sums(reference, kRejected);
  in.chosen_lens = lens(kChosen);
  in.rejected_lens = lens(kRejected);
  in.gold_lens = lens(kGold);
  in.chosen_head_logps = heads(policy, kChosen);
  in.rejected_head_logps = heads(policy, kRejected);
  in.ref_chosen_head_logps = heads(reference, kChosen);
  in.ref_rejected_head_logps = heads(reference, kRejected);
  in.chosen_log_sum_p_squared = per_token(kChosen, squares);
  in.rejected_log_sum_p_squared = per_token(kRejected, squares);
  in.chosen_seq_kl = per_token(kChosen, divergence);
  in.rejected_seq_kl = per_token(kRejected, divergence);
  const auto mismatched = [&](const BigramPolicy& of) {
    return column([&](Row row, std::size_t i) {
      Row other = rows[(i + 1) % rows.size()];
      return sum_over(row.prompt, other, kChosen, all_of(other, kChosen), logp_under(of));
    });
  };
  in.kl_logps = mismatched(policy);
  in.ref_kl_logps = mismatched(reference);
  const auto limited = [&](std::int64_t from, std::int64_t to) {
    return std::clamp(policy.logp(from, to) - reference.logp(from, to), limits.low, limits.high);
  };
  const auto limited_sums = [&](Side side) {
    return column([&](Row row, std::size_t) {
      return sum_over(row.prompt, row, side, all_of(row, side), limited);
    });
  };
  in.chosen_limited_logratios = limited_sums(kChosen);
  in.rejected_limited_logratios = limited_sums(kRejected);
  in.kl_limited_logratios = column([&](Row row, std::size_t i) {
    Row other = rows[(i + 1) % rows.size()];
    return sum_over(row.prompt, other, kChosen, all_of(other, kChosen), limited);
  });
  in.chosen_confident_logps = column([&](Row row, std::size_t) {
    return sum_over(row.prompt, row, kChosen, all_of(row, kChosen),
                    [&](std::int64_t from, std::int64_t to) {
                      return std::exp(held.logp(from, to)) * policy.logp(from, to);
                    });
  });
  in.prompt_logps = column([&](Row row, std::size_t) {
    double sum = 0;
    for (std::size_t t = 1; t < row.prompt.size(); ++t) {
      sum += policy.logp(row.prompt[t - 1], row.prompt[t]);
    }
    return sum;
  });
  in.prompt_lens = column([](Row row, std::size_t) { return row.prompt.size() - 1; });
  const auto given = [&](Column c) {
    return column([&](Row row, std::size_t) { return row.columns[c]; });
  };
  in.labels = given(Column::kLabel);
  in.margins = given(Column::kMargin);
  in.weights = given(Column::kWeight);
  in.label_probs = given(Column::kLabelProb);
  in.chosen_win_rates = given(Column::kChosenWinRate);
  in.rejected_win_rates = given(Column::kRejectedWinRate);
  return in;
}

std::vector<std::string> configurations() {
  std::vector<std::string> all;
  for (const std::string& name : registered_losses()) {
    const std::string config = json{{"type", name}}.dump();
    if (make_loss(config).requirements().samples_per_prompt == 0) all.push_back(config);
  }
  for (const char* config : {
           R"({"type": "dpo", "ld_alpha": 0.3})",
           R"({"type": "dpo", "ld_alpha": 0.3, "ld_policy_only": true})",
           R"({"type": "ipo", "ld_alpha": 0, "weighting": "sampled_alignment"})",
           R"({"type": "dpo", "weighting": "unaligned", "clamp_weighting": true})",
           R"({"type": "dpo", "margin_scale": 0.7, "use_label_probs": true, "use_weights": true})",
           R"({"type": "sppo", "soft": true, "use_weights": true})",
           R"({"type": "bco_pair", "running_delta": true})",
           R"({"type": "kto", "desirable_weight": 2, "use_weights": true})",
           R"({"type": "kto", "estimate_kl": false})",
           R"({"type": "tdpo", "variant": "tdpo1"})",
           R"({"type": "tpo", "length_normalized": true, "gamma": 0.5})",
           R"({"type": "aot", "ld_alpha": 0.4, "length_normalized": true})",
           R"({"type": "aot_unpaired", "reference_free": true})",
           R"({"type": "sft", "use_weights": true})",
           R"({"type": "dpo", "humanline": true, "log_epsilon_p": -0.4, "log_epsilon_r": 0.3})",
           R"({"type": "kto", "humanline": true, "log_epsilon_p": -0.3, "log_epsilon_r": 0.5})",
           R"({"type": "ipo", "humanline": true, "log_epsilon_p": -0.5})",
           R"({"type": "orpo", "nll_over_prompt": true})",
           R"({"type": "orpo", "nll_over_prompt": true, "reduction": "sequence_mean"})",
           R"({"type": "odpo", "beta": 0.4})",
           R"({"type": "cpo", "link": "hinge", "reward_alpha": 0.2, "length_normalized": true})",
           R"({"type": "mix", "terms": [{"loss": {"type": "kto"}}, {"loss": {"type": "sft"}}]})",
           R"({"type": "mix", "terms": [{"weight": 0.4, "loss": {"type": "aot"}},
               {"loss": {"type": "sigmoid_norm"}}, {"loss": {"type": "beta_dpo"}}]})",
       }) {
    all.emplace_back(config);
  }
  return all;
}

TEST_CASE("every loss gets what it asks for, and a step may be cut anyhow", "[train]") {
  const bool weighs_tokens = GENERATE(false, true);
  CAPTURE(weighs_tokens);
  const auto rows = weighs_tokens ? weighted_rows() : full_rows();
  for (const std::string& config : configurations()) {
    CAPTURE(config);
    const Loss loss = make_loss(config);
    const LossRequirements needs = loss.requirements();
    const auto reference = std::make_shared<BigramPolicy>(8);
    const json full = json::parse(loss.config());
    for (const std::int64_t micro : {0, 1, 2}) {
      CAPTURE(micro);
      const auto policy = std::make_shared<BigramPolicy>(9);
      const ExactPairLogps in = exact_inputs(*policy, *reference, rows, needs, *policy);
      TrainerOptions options;
      options.optimizer.schedule = Schedule::kConstant;
      options.micro_batch_size = micro;
      Trainer trainer(policy, make_frozen_reference(reference), loss, options);
      const Metrics metrics = trainer.accumulate_gradients(rows);
      const auto oracle = loss_oracle(full, in);
      REQUIRE(oracle.has_value());
      CHECK(metric(metrics, "loss") ==
            Approx(static_cast<double>(oracle->loss)).epsilon(1e-10).margin(1e-12));

      // Differences of the oracle in the parameters; what is without gradient stays where it was.
      for (const auto& [from, to] : {std::pair{0, 1}, {1, 3}, {3, 2}, {4, 4}}) {
        CAPTURE(from, to);
        const auto moved = [&, from = from, to = to](double by) {
          const BigramPolicy other(policy->table(), policy->bias());
          other.table()[from][to].add_(by);
          return static_cast<double>(
              loss_oracle(full, exact_inputs(other, *reference, rows, needs, *policy), &in)->loss);
        };
        constexpr double kStep = 1e-5;
        const double expected = (moved(kStep) - moved(-kStep)) / (2 * kStep);
        CHECK(policy->table().grad()[from][to].item<double>() ==
              Approx(expected).epsilon(1e-6).margin(1e-7));
      }
    }
  }
}

TEST_CASE("a running mean goes from step to step, and with a checkpoint", "[train]") {
  const auto rows = full_rows();
  const auto reference = std::make_shared<BigramPolicy>(8);
  TrainerOptions options;
  options.optimizer = {.learning_rate = 0.1, .schedule = Schedule::kConstant};
  const Loss loss = make_loss(R"({"type": "bco", "beta": 0.5})");
  const auto trainer_for = [&](const std::shared_ptr<BigramPolicy>& policy) {
    return std::make_unique<Trainer>(policy, make_frozen_reference(reference), loss, options);
  };
  const auto policy = std::make_shared<BigramPolicy>(9);
  const auto rewards = [&](const BigramPolicy& of) {
    const ExactPairLogps in = exact_inputs(of, *reference, rows, {.rejected = false}, of);
    return Eigen::ArrayXd(0.5 * (in.chosen_logps - in.ref_chosen_logps));
  };
  const auto trainer = trainer_for(policy);
  CHECK(trainer->loss_state().count == 0);
  const Eigen::ArrayXd first = rewards(*policy);
  trainer->step(rows);
  CHECK(trainer->loss_state().count == 5);
  CHECK(trainer->loss_state().mean == Approx(first.mean()).epsilon(1e-12));

  const Eigen::ArrayXd second = rewards(*policy);
  const double mean = (first.sum() + second.sum()) / 10;
  double expected = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const double sign = 2 * rows[i].columns[Column::kLabel] - 1;
    const double z = sign * (second[static_cast<Eigen::Index>(i)] - mean);
    expected += std::log1p(std::exp(-z)) / 5;
  }
  // Looking does not count.
  CHECK(metric(trainer->evaluate(rows), "loss") == Approx(expected).epsilon(1e-12));
  CHECK(trainer->loss_state().count == 5);

  const auto copy = std::make_shared<BigramPolicy>(policy->table(), policy->bias());
  const auto resumed = trainer_for(copy);
  resumed->set_loss_state(trainer->loss_state());
  CHECK(metric(resumed->evaluate(rows), "loss") == metric(trainer->evaluate(rows), "loss"));
}

TEST_CASE("unpaired metrics stand under chosen and rejected", "[train]") {
  const auto rows = full_rows();
  const auto policy = std::make_shared<BigramPolicy>(9);
  const auto reference = std::make_shared<BigramPolicy>(8);
  TrainerOptions options;
  options.micro_batch_size = 2;
  Trainer trainer(policy, make_frozen_reference(reference), make_loss(R"({"type": "kto"})"),
                  options);
  const Metrics metrics = trainer.evaluate(rows);
  const ExactPairLogps in = exact_inputs(*policy, *reference, rows, {.rejected = false}, *policy);
  const Eigen::ArrayXd rewards = 0.1 * (in.chosen_logps - in.ref_chosen_logps);
  CHECK(metric(metrics, "rewards/chosen") ==
        Approx((rewards * in.labels).sum() / in.labels.sum()).epsilon(1e-10));
  CHECK(metric(metrics, "rewards/rejected") ==
        Approx((rewards * (1 - in.labels)).sum() / (1 - in.labels).sum()).epsilon(1e-10));
}

TEST_CASE("KTO needs another row for its KL", "[train]") {
  const auto policy = std::make_shared<BigramPolicy>(9);
  Trainer trainer(policy, make_frozen_reference(policy->frozen_copy()),
                  make_loss(R"({"type": "kto"})"), {});
  CHECK_THROWS_TEXT(trainer.evaluate({full_rows().front()}), ShapeError,
                    "kto: expected at least 2 rows a step, got 1; its KL is estimated on the "
                    "completions of other rows");
}

}  // namespace
}  // namespace prefopt
