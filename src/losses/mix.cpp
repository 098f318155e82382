// SPDX-License-Identifier: Apache-2.0
#include "prefopt/losses/mix.h"

#include <ATen/TensorOperators.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/json.h"
#include "prefopt/error.h"
#include "prefopt/losses/pair_fields.h"
#include "prefopt/losses/pairwise_loss.h"
#include "prefopt/losses/registry.h"

namespace prefopt {
namespace {

using detail::Json;

void check_term(const Json& term) {
  const auto fail = [&] {
    throw ConfigError(fmt::format(
        "mix: expected terms of the form {{\"weight\": number, \"loss\": {{\"type\": …}}}}, got {}",
        detail::shown_json(term)));
  };
  if (!term.is_object() || !term.contains("loss")) fail();
  for (const auto& item : term.items()) {
    if (item.key() != "weight" && item.key() != "loss") fail();
  }
  if (const auto weight = term.find("weight"); weight != term.end()) {
    if (!weight->is_number() || !std::isfinite(weight->get<double>())) fail();
  }
}

/// Returns the needs of two losses on the same rows together.
LossRequirements joined(const LossRequirements& a, const LossRequirements& b) {
  if (a.labels() != b.labels()) {
    throw ConfigError(
        "mix: expected terms for the same kind of rows, got one for pairs and one for single "
        "completions with a label");
  }
  if ((a.advantages() && b.rejected()) || (b.advantages() && a.rejected())) {
    throw ConfigError(
        "mix: expected terms for the same kind of rows, got one for pairs and one for single "
        "completions with an advantage");
  }
  if (a.of_rewards != b.of_rewards) {
    throw ConfigError(
        "mix: expected terms for one kind of model, got one for a reward model and one for a "
        "policy's log-probs");
  }
  if (a.limits && b.limits && a.limits != b.limits) {
    throw ConfigError(
        "mix: expected terms with the same log_epsilon_p and log_epsilon_r of humanline, got "
        "different ones");
  }
  if (a.running_mean && b.running_mean) {
    throw ConfigError("mix: expected at most one term with a running mean, got two");
  }
  const bool both_sample =
      a.sample_source != SampleSource::kNone && b.sample_source != SampleSource::kNone;
  if (both_sample &&
      (a.sample_source != b.sample_source || a.samples_per_prompt != b.samples_per_prompt)) {
    throw ConfigError(
        "mix: expected terms that want the same fresh samples, got different sources or numbers "
        "of them");
  }
  const LossRequirements& sampled = a.sample_source != SampleSource::kNone ? a : b;
  return {.inputs = a.inputs | b.inputs,
          .limits = a.limits ? a.limits : b.limits,
          .whole_step = a.whole_step || b.whole_step,
          .running_mean = a.running_mean || b.running_mean,
          .sample_source = sampled.sample_source,
          .samples_per_prompt = sampled.samples_per_prompt,
          .of_own_samples = a.of_own_samples || b.of_own_samples,
          .of_rewards = a.of_rewards};
}

/// Returns the losses of all terms. An sft on labelled rows follows their labels.
std::vector<Loss> losses_of(const Json& terms) {
  std::vector<Loss> losses;
  for (const Json& term : terms) {
    check_term(term);
    losses.push_back(make_loss(detail::dump_json(term["loss"])));
  }
  const bool labelled_rows = std::any_of(
      losses.begin(), losses.end(), [](const Loss& loss) { return loss.requirements().labels(); });
  for (std::size_t i = 0; labelled_rows && i < losses.size(); ++i) {
    if (losses[i].info().name != "sft" || terms[i]["loss"].contains("use_labels")) continue;
    Json config = detail::parse_json<ConfigError>(losses[i].config(), "mix");
    config["use_labels"] = true;
    losses[i] = make_loss(detail::dump_json(config));
  }
  return losses;
}

void add(at::Tensor& sum, double weight, const at::Tensor& part) {
  if (part.defined()) detail::add_to(sum, weight * part);
}

}  // namespace

void MixOptions::fields(FieldVisitor& v) {
  v.json({"terms", "list of {\"weight\": number, default 1, \"loss\": {\"type\": …}}"}, terms);
}

MixLoss::MixLoss(MixOptions options) : options_(std::move(options)) {
  const Json terms = detail::parse_json<ConfigError>(options_.terms, "mix");
  if (!terms.is_array() || terms.empty()) {
    throw ConfigError(fmt::format("mix: expected terms to be a list of at least one, got {}",
                                  detail::shown_json(terms)));
  }
  std::vector<Loss> losses = losses_of(terms);
  Json full = Json::array();
  for (std::size_t i = 0; i < losses.size(); ++i) {
    Loss& loss = losses[i];
    const double weight = terms[i].value("weight", 1.0);
    full.push_back(
        {{"weight", weight}, {"loss", detail::parse_json<ConfigError>(loss.config(), "mix")}});
    needs_ = terms_.empty() ? loss.requirements() : joined(needs_, loss.requirements());
    const std::string name = loss.info().name;
    const auto before = std::count_if(terms_.begin(), terms_.end(), [&](const Term& other) {
      return other.loss.info().name == name;
    });
    terms_.push_back(
        {weight, std::move(loss), before == 0 ? name : fmt::format("{}_{}", name, before + 1)});
  }
  options_.terms = detail::dump_json(full);
}

LossOutput MixLoss::forward(const PairLogps& logps) const {
  (void)detail::checked_inputs(logps, needs_, "mix");  // before a term complains in its own name
  LossOutput mixed;
  mixed.running = logps.running;
  for (const Term& term : terms_) {
    const LossOutput part = term.loss(logps);
    add(mixed.loss, term.weight, part.loss);
    add(mixed.losses, term.weight, part.losses);
    for (const auto& field : kPairFields<at::Tensor>) {
      if (field.gradient) add(mixed.*field.gradient, term.weight, part.*field.gradient);
    }
    if (!mixed.logged_chosen_logps.defined()) {
      mixed.logged_chosen_logps = part.logged_chosen_logps;
      mixed.logged_rejected_logps = part.logged_rejected_logps;
    }
    if (!mixed.chosen_rewards.defined()) {
      mixed.chosen_rewards = part.chosen_rewards;
      mixed.rejected_rewards = part.rejected_rewards;
      mixed.margins = part.margins;
    }
    if (term.loss.requirements().running_mean) mixed.running = part.running;
    if (part.kl.defined()) mixed.kl = part.kl;
    mixed.terms.push_back({term.name, (term.weight * part.loss).detach()});
  }
  return mixed;
}

GradientExceptions MixLoss::gradient_exceptions() const {
  GradientExceptions all;
  for (const Term& term : terms_) all = all | term.loss.gradient_exceptions();
  return all;
}

LossInfo MixLoss::info() {
  return {
      .name = "mix",
      .aliases = {"mpo"},
      .formula = "sum of weight * loss over the terms",
      .source = "arXiv:2411.10442",
      .anchors = {{0, 0, 2.8317766166719343}},
      .when_to_use = "Several wishes at once; the default is TRL's MPO: order, quality, imitation.",
      .elsewhere = {{"TRL", "a list as loss_type, with loss_weights"},
                    {"MPO authors' code", "",
                     "bco_pair with running_delta, sft with reduction sequence_mean"}}};
}

}  // namespace prefopt
