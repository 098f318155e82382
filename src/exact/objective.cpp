// SPDX-License-Identifier: Apache-2.0
#include "prefopt/exact/objective.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "core/json.h"
#include "prefopt/error.h"
#include "prefopt/losses/pair_fields.h"

namespace prefopt::exact {
namespace {

using Eigen::ArrayXd;
using Eigen::VectorXd;

void check_table(const Table& table, const SoftmaxPolicy& policy, const char* name) {
  if (table.rows() == policy.actions() && table.cols() == policy.prompts()) return;
  throw ShapeError(fmt::format("objective: expected {} of shape [{}, {}], got [{}, {}]", name,
                               policy.actions(), policy.prompts(), table.rows(), table.cols()));
}

void check_range(const std::vector<Index>& values, Index end, const char* what) {
  for (const Index value : values) {
    if (value >= 0 && value < end) continue;
    throw DataError(
        fmt::format("objective: expected {} from 0 to {}, got {}", what, end - 1, value));
  }
}

void check_pairs(const Pairs& pairs, const SoftmaxPolicy& policy) {
  const auto count = static_cast<std::size_t>(pairs.size());
  if (count == 0 || pairs.prompts.size() != count || pairs.chosen.size() != count ||
      pairs.rejected.size() != count) {
    throw ShapeError(fmt::format(
        "objective: expected at least one pair, and as many prompts, chosen and rejected actions "
        "as weights, got {}, {}, {} and {}",
        pairs.prompts.size(), pairs.chosen.size(), pairs.rejected.size(), count));
  }
  check_range(pairs.prompts, policy.prompts(), "prompts");
  check_range(pairs.chosen, policy.actions(), "chosen actions");
  check_range(pairs.rejected, policy.actions(), "rejected actions");
}

void check_weights(const ArrayXd& weights, const ExactLoss& loss) {
  const double least = weights.minCoeff(), most = weights.maxCoeff();
  if (!(least >= 0) || !(std::abs(weights.sum() - 1) < 1e-9)) {
    throw ConfigError(fmt::format(
        "objective: expected weights of at least 0 that sum to 1, got a smallest one of {:.6g} "
        "and a sum of {:.6g}",
        least, weights.sum()));
  }
  if (loss.requirements().whole_step && most - least > 1e-9 * most) {
    throw ConfigError(fmt::format(
        "objective: expected pairs of equal weight for '{}', which sees a step as a whole, got "
        "weights from {:.6g} to {:.6g}; sample pairs",
        loss.name(), least, most));
  }
}

void check_known(bool known, const char* what, const ExactLoss& loss) {
  if (known) return;
  throw ConfigError(fmt::format("objective: expected {} for '{}', got none", what, loss.name()));
}

/// In expectation one sample says as much as several, each with the mean of the others as baseline.
ExactLoss of_one_sample(ExactLoss loss) {
  if (loss.requirements().has(Input::groups)) {
    detail::Json config = detail::parse_json<ConfigError>(loss.config(), "loss");
    config["kl_baseline"] = "none";
    return ExactLoss(detail::dump_json(config));
  }
  if (loss.requirements().samples_per_prompt < 2) return loss;
  detail::Json config = detail::parse_json<ConfigError>(loss.config(), "loss");
  if (!config.contains("num_samples")) {
    throw ConfigError(
        fmt::format("objective: expected a loss of at most one sample a prompt, got {} of '{}'",
                    loss.requirements().samples_per_prompt, loss.name()));
  }
  config["num_samples"] = 1;
  return ExactLoss(detail::dump_json(config));
}

/// table(actions[i], prompts[i]) at i.
ArrayXd gathered(const Table& table, const std::vector<Index>& actions,
                 const std::vector<Index>& prompts) {
  return ArrayXd::NullaryExpr(static_cast<Index>(actions.size()), [&](Index i) {
    const auto row = static_cast<std::size_t>(i);
    return table(actions[row], prompts[row]);
  });
}

/// table(actions[i], prompts[i]) += values[i]; nothing where there are no values.
void scatter(Table& table, const std::vector<Index>& actions, const std::vector<Index>& prompts,
             const ArrayXd& values) {
  for (Index i = 0; i < values.size(); ++i) {
    const auto row = static_cast<std::size_t>(i);
    table(actions[row], prompts[row]) += values[i];
  }
}

/// Probability of each action to beat one that is drawn by `logps`.
Table win_rates(const Preferences& preferences, const Table& logps) {
  Table rates(logps.rows(), logps.cols());
  for (Index x = 0; x < logps.cols(); ++x) {
    rates.col(x) = preferences.of(x) * logps.col(x).exp().matrix();
  }
  return rates;
}

/// values[prompts[i]] at i.
ArrayXd spread(const Eigen::RowVectorXd& values, const std::vector<Index>& prompts) {
  return ArrayXd::NullaryExpr(static_cast<Index>(prompts.size()), [&](Index i) {
    return values[prompts[static_cast<std::size_t>(i)]];
  });
}

}  // namespace

Objective::Objective(ExactLoss loss, SoftmaxPolicy policy, Table ref_logps, const Pairs& pairs,
                     Knowledge knowledge)
    : loss_(of_one_sample(std::move(loss))),
      policy_(std::move(policy)),
      ref_(std::move(ref_logps)),
      knowledge_(std::move(knowledge)) {
  check_table(ref_, policy_, "ref_logps");
  check_pairs(pairs, policy_);
  check_weights(pairs.weights, loss_);
  complete_knowledge();
  if (loss_.requirements().labels()) {
    add_sides(pairs);
  } else if (loss_.requirements().advantages()) {
    add_own_samples(pairs);
  } else {
    add_pairs(pairs);
  }
  set_fixed_inputs();
}

void Objective::complete_knowledge() {
  const auto complete = [&](Table& table, const Table& otherwise, const char* name) {
    if (table.size() == 0) table = otherwise;
    check_table(table, policy_, name);
  };
  complete(knowledge_.lens, Table::Ones(policy_.actions(), policy_.prompts()), "lens");
  complete(knowledge_.calibration, ref_, "calibration");
  const LossRequirements& needs = loss_.requirements();
  const bool has_preferences = knowledge_.preferences.has_value();
  if (needs.has(Input::margins) || needs.gold() || (needs.advantages() && !has_preferences)) {
    check_known(knowledge_.rewards.size() > 0, "rewards", loss_);
    check_table(knowledge_.rewards, policy_, "rewards");
  }
  if (needs.has(Input::chosen_win_rates) || needs.has(Input::label_probs) ||
      (needs.advantages() && has_preferences)) {
    check_known(has_preferences, "preferences", loss_);
    const Preferences& given = *knowledge_.preferences;
    if (given.prompts() != policy_.prompts() || given.actions() != policy_.actions()) {
      throw ShapeError(
          fmt::format("objective: expected preferences of {} actions and {} prompts, got {} and {}",
                      policy_.actions(), policy_.prompts(), given.actions(), given.prompts()));
    }
  }
}

void Objective::add_row(Index prompt, Index chosen, Index rejected, double weight) {
  rows_.prompts.push_back(prompt);
  rows_.chosen.push_back(chosen);
  rows_.rejected.push_back(rejected);
  rows_.weights.push_back(weight);
}

/// All actions of the prompts that the pairs have, whose probabilities follow later.
void Objective::add_own_samples(const Pairs& pairs) {
  std::map<Index, double> weights;
  for (Index i = 0; i < pairs.size(); ++i) {
    weights[pairs.prompts[static_cast<std::size_t>(i)]] += pairs.weights[i];
  }
  for (const auto& [prompt, weight] : weights) {
    for (Index action = 0; action < policy_.actions(); ++action) {
      add_row(prompt, action, action, weight);
      rows_.sampled.push_back(action);
    }
  }
}

void Objective::add_pairs(const Pairs& pairs) {
  if (loss_.requirements().has(Input::from_reference)) {
    check_known(!pairs.from_reference.empty(), "pairs that say which side the reference drew",
                loss_);
  }
  const bool samples = loss_.requirements().samples_per_prompt > 0;
  const Index rows_a_pair = samples ? policy_.actions() : 1;
  for (Index i = 0; i < pairs.size(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    for (Index sampled = 0; sampled < rows_a_pair; ++sampled) {
      add_row(pairs.prompts[at], pairs.chosen[at], pairs.rejected[at], pairs.weights[i]);
      if (samples) rows_.sampled.push_back(sampled);
      if (!pairs.from_reference.empty()) rows_.from_reference.push_back(pairs.from_reference[at]);
    }
  }
}

void Objective::add_sides(const Pairs& pairs) {
  std::vector<double> labels;
  for (Index i = 0; i < pairs.size(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    const double weight = pairs.weights[i] / 2;
    add_row(pairs.prompts[at], pairs.chosen[at], pairs.rejected[at], weight);
    add_row(pairs.prompts[at], pairs.rejected[at], pairs.chosen[at], weight);
    labels.insert(labels.end(), {1, 0});
  }
  fixed_.labels = Eigen::Map<const ArrayXd>(labels.data(), static_cast<Index>(labels.size()));
}

void Objective::set_fixed_inputs() {
  const LossRequirements& needs = loss_.requirements();
  const auto both = [&](const Table& table, ArrayXd& chosen, ArrayXd& rejected) {
    chosen = gathered(table, rows_.chosen, rows_.prompts);
    rejected = gathered(table, rows_.rejected, rows_.prompts);
  };
  both(ref_, fixed_.ref_chosen_logps, fixed_.ref_rejected_logps);
  both(knowledge_.lens, fixed_.chosen_lens, fixed_.rejected_lens);
  fixed_.ref_chosen_overlap_logps = fixed_.ref_chosen_logps;
  fixed_.ref_rejected_overlap_logps = fixed_.ref_rejected_logps;
  const auto rows = static_cast<Index>(rows_.weights.size());
  fixed_.weights = ArrayXd::Ones(rows);
  fixed_.from_reference = Eigen::Map<const ArrayXd>(
      rows_.from_reference.data(), static_cast<Index>(rows_.from_reference.size()));
  // Means over tokens are over the weighted tokens of the pairs.
  const Eigen::Map<const ArrayXd> weights(rows_.weights.data(), rows);
  const double scale = static_cast<double>(rows) / weights.sum();
  fixed_.totals = {.pairs = static_cast<double>(rows),
                   .chosen_tokens = scale * (weights * fixed_.chosen_lens).sum(),
                   .rejected_tokens = scale * (weights * fixed_.rejected_lens).sum()};
  if (needs.has(Input::margins)) {
    fixed_.margins = gathered(knowledge_.rewards, rows_.chosen, rows_.prompts) -
                     gathered(knowledge_.rewards, rows_.rejected, rows_.prompts);
  }
  if (needs.has(Input::label_probs)) {
    fixed_.label_probs = ArrayXd::NullaryExpr(rows, [&](Index i) {
      const auto at = static_cast<std::size_t>(i);
      return (*knowledge_.preferences)(rows_.prompts[at], rows_.chosen[at], rows_.rejected[at]);
    });
  }
  if (needs.gold()) {
    for (const Index prompt : rows_.prompts) {
      Index best = 0;
      knowledge_.rewards.col(prompt).maxCoeff(&best);
      rows_.gold.push_back(best);
    }
    fixed_.gold_lens = gathered(knowledge_.lens, rows_.gold, rows_.prompts);
    fixed_.totals.gold_tokens = scale * (weights * fixed_.gold_lens).sum();
  }
  if (needs.has(Input::prompt_logps)) {  // which no action changes
    fixed_.prompt_logps = fixed_.prompt_lens = ArrayXd::Zero(rows);
  }
  if (needs.has(Input::kl_logps)) {
    rows_.mismatched = rows_.chosen;
    std::rotate(rows_.mismatched.begin(), rows_.mismatched.begin() + 1, rows_.mismatched.end());
    fixed_.ref_kl_logps = gathered(ref_, rows_.mismatched, rows_.prompts);
  }
  if (!rows_.sampled.empty()) {
    fixed_.samples_per_prompt = 1;
    fixed_.ref_sample_logps = gathered(ref_, rows_.sampled, rows_.prompts);
    fixed_.sample_lens = gathered(knowledge_.lens, rows_.sampled, rows_.prompts);
  }
}

Table Objective::advantages(const Table& logps) const {
  if (knowledge_.preferences) return win_rates(*knowledge_.preferences, logps) - 0.5;
  const Eigen::RowVectorXd means = (logps.exp() * knowledge_.rewards).colwise().sum();
  return knowledge_.rewards.rowwise() - means.array();
}

ExactPairLogps Objective::inputs(const Table& logps) const {
  const LossRequirements& needs = loss_.requirements();
  ExactPairLogps in = fixed_;
  in.chosen_logps = gathered(logps, rows_.chosen, rows_.prompts);
  in.rejected_logps = gathered(logps, rows_.rejected, rows_.prompts);
  if (needs.has(Input::chosen_overlap_logps)) {
    in.chosen_overlap_logps = in.chosen_logps;
    in.rejected_overlap_logps = in.rejected_logps;
  }
  if (needs.has(Input::chosen_log_sum_p_squared)) {
    const Eigen::RowVectorXd of_prompt = (2 * logps).exp().colwise().sum().log();
    in.chosen_log_sum_p_squared = in.rejected_log_sum_p_squared = spread(of_prompt, rows_.prompts);
  }
  if (needs.has(Input::chosen_seq_kl)) {
    const Eigen::RowVectorXd of_prompt = (ref_.exp() * (ref_ - logps)).colwise().sum();
    in.chosen_seq_kl = in.rejected_seq_kl = spread(of_prompt, rows_.prompts);
  }
  if (needs.has(Input::chosen_win_rates)) {
    const Table rates = win_rates(*knowledge_.preferences, logps);
    in.chosen_win_rates = gathered(rates, rows_.chosen, rows_.prompts);
    in.rejected_win_rates = gathered(rates, rows_.rejected, rows_.prompts);
  }
  if (needs.advantages()) in.advantages = gathered(advantages(logps), rows_.chosen, rows_.prompts);
  if (needs.has(Input::chosen_confident_logps))
    in.chosen_confident_logps = in.chosen_logps.exp() * in.chosen_logps;
  if (needs.limits) {
    const auto limited = [&](const ArrayXd& logratios) -> ArrayXd {
      return logratios.max(needs.limits->low).min(needs.limits->high);
    };
    in.chosen_limited_logratios = limited(in.chosen_logps - fixed_.ref_chosen_logps);
    in.rejected_limited_logratios = limited(in.rejected_logps - fixed_.ref_rejected_logps);
    if (needs.has(Input::kl_logps)) {
      in.kl_limited_logratios =
          limited(gathered(logps, rows_.mismatched, rows_.prompts) - fixed_.ref_kl_logps);
    }
  }
  in.gold_logps = gathered(logps, rows_.gold, rows_.prompts);
  in.kl_logps = gathered(logps, rows_.mismatched, rows_.prompts);
  in.sample_logps = gathered(logps, rows_.sampled, rows_.prompts);
  for (const auto& field : kPairFields<ArrayXd>) {
    if (!field.needed(needs) || (in.*field.value).size() > 0) continue;
    throw ConfigError(
        fmt::format("objective: expected inputs that a table of actions has, got {} in '{}'",
                    field.name, loss_.name()));
  }
  return in;
}

ArrayXd Objective::row_weights(const Table& logps) const {
  ArrayXd weights =
      Eigen::Map<const ArrayXd>(rows_.weights.data(), static_cast<Index>(rows_.weights.size()));
  if (!rows_.sampled.empty()) {
    const LossRequirements& needs = loss_.requirements();
    const bool of_policy = needs.of_own_samples || needs.sample_source == SampleSource::kPolicy;
    weights *=
        gathered(of_policy ? logps : knowledge_.calibration, rows_.sampled, rows_.prompts).exp();
  }
  return weights;
}

Table Objective::slopes(const ExactPairLogps& in, const ExactLossOutput& out,
                        const ArrayXd& weights) const {
  Table slopes = Table::Zero(policy_.actions(), policy_.prompts());
  // A loss divides its gradients by the number of rows.
  const ArrayXd scale = weights * fixed_.totals.pairs;
  const auto add = [&](const ArrayXd& gradient, const std::vector<Index>& actions) {
    if (gradient.size() > 0) scatter(slopes, actions, rows_.prompts, scale * gradient);
  };
  add(out.grad_chosen, rows_.chosen);
  add(out.grad_rejected, rows_.rejected);
  add(out.grad_chosen_overlap, rows_.chosen);
  add(out.grad_rejected_overlap, rows_.rejected);
  if (out.grad_confident.size() > 0) {
    add(out.grad_confident * in.chosen_logps.exp(), rows_.chosen);
  }
  // A log-ratio at a limit does not move.
  const auto add_limited = [&](const ArrayXd& gradient, const ArrayXd& limited,
                               const ArrayXd& logratios, const std::vector<Index>& actions) {
    if (gradient.size() > 0) add(gradient * (limited == logratios).cast<double>(), actions);
  };
  add_limited(out.grad_chosen_limited, in.chosen_limited_logratios,
              in.chosen_logps - in.ref_chosen_logps, rows_.chosen);
  add_limited(out.grad_rejected_limited, in.rejected_limited_logratios,
              in.rejected_logps - in.ref_rejected_logps, rows_.rejected);
  add(out.grad_gold, rows_.gold);
  add(out.grad_samples, rows_.sampled);
  const auto add_kl = [&](const ArrayXd& gradient) {  // d KL(ref || pi) / d log pi = -ref
    for (Index i = 0; i < gradient.size(); ++i) {
      const Index prompt = rows_.prompts[static_cast<std::size_t>(i)];
      slopes.col(prompt) -= scale[i] * gradient[i] * ref_.col(prompt).exp();
    }
  };
  add_kl(out.grad_chosen_seq_kl);
  add_kl(out.grad_rejected_seq_kl);
  return slopes;
}

Objective::Evaluation Objective::evaluate(const VectorXd& theta) const {
  const Table logps = policy_.logps(theta);
  const ArrayXd weights = row_weights(logps);
  const ExactPairLogps in = inputs(logps);
  const ExactLossOutput out = loss_.evaluate(in);
  return {(weights * out.losses).sum(), policy_.pullback(logps, slopes(in, out, weights))};
}

Eigen::MatrixXd Objective::hessian(const VectorXd& theta) const {
  const Index size = theta.size();
  Eigen::MatrixXd hessian(size, size);
  VectorXd moved = theta;
  for (Index i = 0; i < size; ++i) {
    const double step = 1e-3 * std::max(1.0, std::abs(theta[i]));
    const auto gradient_at = [&](double steps) {
      moved[i] = theta[i] + steps * step;
      return evaluate(moved).gradient;
    };
    hessian.col(i) =
        (8 * (gradient_at(1) - gradient_at(-1)) - gradient_at(2) + gradient_at(-2)) / (12 * step);
    moved[i] = theta[i];
  }
  return (hessian + hessian.transpose()) / 2;
}

}  // namespace prefopt::exact
