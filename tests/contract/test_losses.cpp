// SPDX-License-Identifier: Apache-2.0

// Properties of every registered loss, checked by looping the registry. A new loss is covered by
// its line in src/losses/builtin_types.h, and fails here until its formula is written once more in
// support/loss_oracle_preference.cpp; docs/extending.md leads through it.

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numbers>
#include <optional>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/testing/loss_checks.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/loss_oracle.h"
#include "support/pairs.h"

namespace prefopt {
namespace {

using nlohmann::json;
using namespace testing_support;

json full_config(const json& config) { return json::parse(make_loss(config.dump()).config()); }

// The config with all its options; empty if the library refuses it and says why.
std::optional<json> accepted(const json& config) {
  try {
    return full_config(config);
  } catch (const ConfigError& error) {
    CAPTURE(config.dump(), error.what());
    REQUIRE(std::string(error.what()).find("; ") != std::string::npos);
    return std::nullopt;
  }
}

std::vector<json> values_to_try(const FieldDoc& option, const json& value) {
  if (option.type == "flag") return {!value.get<bool>()};
  if (option.type == "choice") {
    std::string list = option.range;
    std::ranges::replace(list, '\'', '"');
    return json::parse("[" + list + "]").get<std::vector<json>>();
  }
  if (option.name == "label_smoothing") return {0.3};
  if (option.name == "num_samples") return {1, 4};
  if (option.type == "number") return {0.37};
  return {};
}

// Options of scores and pairs that only matter together, for every loss that has them.
const std::vector<json> kTogether{
    {{"weighting", "sampled_alignment"}, {"clamp_weighting", true}, {"use_weights", true}},
    {{"ld_alpha", 0.4}, {"ld_policy_only", true}, {"use_label_probs", true}},
    {{"margin_scale", 0.5}, {"use_label_probs", true}, {"use_weights", true}},
    {{"divergence", "alpha_divergence"}, {"divergence_alpha", 1.6}, {"ld_alpha", 0.6}},
    {{"divergence", "chi_squared_mix"}, {"divergence_gamma", 0.2}, {"length_normalized", true}},
    {{"length_normalized", true}, {"weighting", "unaligned"}, {"reference_free", false}},
    {{"margin_scale", 0.5}, {"margin_of", "log_gap"}, {"use_weights", true}},
    {{"humanline", true}, {"log_epsilon_p", -0.5}, {"log_epsilon_r", 0.8}},
};

const std::vector<const char*> kFurther{
    R"({"type": "dpo", "beta": 0.7, "label_smoothing": 0.2, "divergence": "forward_kl"})",
    R"({"type": "robust", "beta": 0.4, "label_smoothing": 0.45, "divergence": "jeffrey"})",
    R"({"type": "f_dpo", "divergence": "alpha_divergence", "divergence_alpha": 0})",
    R"({"type": "ipo", "tau": 0.8, "length_normalized": false, "divergence": "forward_kl"})",
    R"({"type": "rpo", "reduction": "sum", "eta": 0.02, "divergence": "js_divergence"})",
    R"({"type": "rpo", "baseline": "rejected", "reduction": "sequence_mean"})",
    R"({"type": "vpo", "calibration": "samples", "num_samples": 3, "mode": "online"})",
    R"({"type": "hypo", "num_samples": 3, "clip": 1.5, "token_mean": true, "lambda": 0.5})",
    R"({"type": "cpo", "link": "hinge", "beta": 2, "alpha": 0.1, "reduction": "sum"})",
    R"({"type": "cpo", "link": "ipo", "beta": 0.4, "length_normalized": true, "reward_alpha": 0.3})",
    R"({"type": "cpo", "link": "hinge", "beta": 0.1, "alpha": 0, "reward_alpha": -0.05})",
    R"({"type": "cpo", "length_normalized": true, "gamma": 0.5, "label_smoothing": 0.2})",
    R"({"type": "orpo", "nll_over_prompt": true, "reduction": "sequence_mean", "lambda": 0.4})",
    R"({"type": "orpo", "nll_over_prompt": true, "reduction": "sum"})",
    R"({"type": "dft", "reduction": "sequence_mean", "use_weights": true})",
    R"({"type": "hypo", "lambda": 0})",
    R"({"type": "ipo", "humanline": true, "divergence": "js_divergence"})",
    R"({"type": "tpo", "alpha": 0, "gamma": 0.3})",
    R"({"type": "tpo", "link": "ipo", "beta": 0.7, "length_normalized": true})",
    R"({"type": "bco_pair", "running_delta": true, "use_label_probs": true, "beta": 0.5})",
    R"({"type": "kto", "desirable_weight": 0.4, "undesirable_weight": 3, "use_weights": true})",
    R"({"type": "tdpo", "variant": "tdpo1", "use_weights": true, "beta": 0.6})",
    R"({"type": "chi_po", "clip": 0, "beta": 0.3})",
    R"({"type": "sppo", "soft": true, "use_weights": true})",
    R"({"type": "rpo_sq", "use_label_probs": true, "eta": 0.5})",
    R"({"type": "ipo", "length_normalized": false, "use_label_probs": true, "beta": 0.4})",
    R"({"type": "tdpo", "variant": "tdpo1", "use_label_probs": true, "use_weights": true})",
    R"({"type": "r_dpo", "use_label_probs": true, "alpha": 0.3, "length_normalized": true})",
    R"({"type": "vpo", "calibration": "reference_side", "mode": "online", "use_label_probs": true})",
    R"({"type": "xpo", "link": "ipo", "alpha": 0.3, "use_label_probs": true})",
    R"({"type": "xpo", "link": "hinge", "alpha": 0.02, "data_gradient": 0.4})",
    R"({"type": "seppo", "flip": "indicator", "beta": 0.7, "use_weights": true})",
    R"({"type": "policy_gradient", "kl_baseline": "group", "tau": 0.4, "use_weights": true})",
    R"({"type": "policy_gradient", "tau": 0})",
    R"({"type": "dpo", "data_gradient": 0.6, "use_label_probs": true, "use_weights": true})",
    R"({"type": "bco_pair", "running_delta": true, "data_gradient": 0.3})",
    R"({"type": "mix", "terms": [{"loss": {"type": "policy_gradient", "tau": 0.2}},
        {"weight": 0.5, "loss": {"type": "sft"}}]})",
    R"({"type": "reward_bt", "center_rewards_coefficient": 0.2, "margin_scale": 0.7,
        "use_label_probs": true, "use_weights": true})",
    R"({"type": "mix", "terms": [{"weight": 0.3, "loss": {"type": "hypo", "lambda": 0.4}},
        {"loss": {"type": "tdpo", "beta": 0.3}}, {"weight": -2, "loss": {"type": "rpo_sq"}}]})",
    R"({"type": "mix", "terms": [{"weight": 2, "loss": {"type": "beta_dpo"}},
        {"weight": 0.1, "loss": {"type": "tpo"}}, {"loss": {"type": "dpo", "ld_alpha": 0.2}},
        {"loss": {"type": "kto_pair", "weighting": "sampled_alignment"}}]})",
    R"({"type": "mix", "terms": [{"loss": {"type": "kto"}}, {"weight": 3, "loss": {"type": "bco"}}]})",
    R"({"type": "mix", "terms": [{"loss": {"type": "sft"}}, {"weight": 3, "loss": {"type": "bco"}}]})",
    R"({"type": "mix", "terms": [{"loss": {"type": "dft"}},
        {"weight": 0.5, "loss": {"type": "orpo", "nll_over_prompt": true}}]})",
};

// Each loss with its defaults, then with every value of every choice and flag and with numbers
// moved off their defaults, one option at a time and then some together.
std::vector<json> configurations() {
  std::vector<json> all;
  const auto add = [&](const json& config) {
    const auto full = accepted(config);
    if (full && std::ranges::count(all, *full) == 0) all.push_back(*full);
  };
  for (const std::string& name : registered_losses()) {
    const json base = full_config({{"type", name}});
    all.push_back(base);
    const auto& options = find_loss(name).options;
    for (const FieldDoc& option : options) {
      // A config is written without an option that was added later.
      const json usual = base.contains(option.name) || option.type != "flag"
                             ? base.value(option.name, json())
                             : json::parse(option.default_value);
      for (const json& value : values_to_try(option, usual)) {
        json changed = base;
        changed[option.name] = value;
        add(changed);
      }
    }
    for (const json& together : kTogether) {
      json changed = base;
      for (const auto& [key, value] : together.items()) {
        if (base.contains(key)) changed[key] = value;
      }
      add(changed);
    }
  }
  for (const char* text : kFurther) all.push_back(full_config(json::parse(text)));
  return all;
}

int samples_of(const Loss& loss) {
  return static_cast<int>(loss.requirements().samples_per_prompt);
}

ExactPairLogps to_exact(const PairLogps& in) {
  ExactPairLogps out;
  for (std::size_t i = 0; i < kPairFields<at::Tensor>.size(); ++i) {
    const at::Tensor& x = in.*kPairFields<at::Tensor>[i].value;
    if (x.defined()) out.*kPairFields<Eigen::ArrayXd>[i].value = to_array(x);
  }
  out.samples_per_prompt = in.samples_per_prompt;
  if (in.running.count > 0) out.running = {in.running.mean.item<double>(), in.running.count};
  return out;
}

testing::LossCheckOptions check_options(const json& config) {
  const Loss loss = make_loss(config.dump());
  testing::LossCheckOptions options;
  options.anchors = config == full_config({{"type", config["type"]}});
  if (options.anchors) options.properties = loss.properties();
  const GradientExceptions exceptions = loss.gradient_exceptions();
  for (const InputInfo& input : kInputs) {
    if (exceptions.estimated.has(input.input)) options.no_difference.emplace_back(input.name);
  }
  if (exceptions.stops_part) {
    options.surrogate = [config](const PairLogps& moved, const PairLogps& frozen) {
      const ExactPairLogps stopped = to_exact(frozen);
      return static_cast<double>(loss_oracle(config, to_exact(moved), &stopped)->loss);
    };
  }
  return options;
}

TEST_CASE("every loss passes the checks that the library offers", "[contract]") {
  for (const json& config : configurations()) {
    CAPTURE(config.dump());
    REQUIRE(loss_oracle(config, random_pairs(2, 4, 1)).has_value());
    CHECK(testing::check_loss(make_loss(config.dump()), check_options(config)).text() == "");
  }
}

TEST_CASE("every loss has a value known by hand", "[contract]") {
  for (const std::string& name : registered_losses()) {
    CAPTURE(name);
    CHECK_FALSE(find_loss(name).info.anchors.empty());
  }
}

// How much of the loss follows from relative errors of one in the log-probs: what rounding them
// costs, in units of the dtype's epsilon. Large where big numbers cancel.
double condition(const LossOutput& out, const PairLogps& in) {
  double total = 0;
  for (const auto& field : kPairFields<at::Tensor>) {
    if (field.gradient == nullptr || !(out.*field.gradient).defined()) continue;
    total += (in.*field.value * out.*field.gradient).abs().sum().item<double>();
  }
  return total;
}

TEST_CASE("every loss equals its oracle in float64 and float32", "[contract]") {
  for (const json& config : configurations()) {
    CAPTURE(config.dump());
    const Loss loss = make_loss(config.dump());
    for (unsigned seed : {1u, 2u, 3u}) {
      const ExactPairLogps in = random_pairs(7, samples_of(loss), seed, 2);
      const auto oracle = loss_oracle(config, in);
      REQUIRE(oracle.has_value());
      const LossOutput got = loss(to_tensors(in));
      const double spread = 4 * condition(got, to_tensors(in));
      CHECK(got.loss.item<double>() == Approx(static_cast<double>(oracle->loss))
                                           .epsilon(1e-12)
                                           .margin(1e-12 + spread * 0x1p-52));

      // float32 sees the inputs after rounding, so the oracle does too.
      ExactPairLogps rounded = in;
      for (const auto& field : kPairFields<Eigen::ArrayXd>) {
        rounded.*field.value = (in.*field.value).cast<float>().cast<double>();
      }
      const LossOutput single = loss(to_tensors(rounded, at::kFloat));
      CHECK(single.loss.scalar_type() == at::kFloat);
      CHECK(single.loss.item<double>() ==
            Approx(static_cast<double>(loss_oracle(config, rounded)->loss))
                .epsilon(1e-5)
                .margin(2e-6 + spread * 0x1p-23));
    }
  }
}

// The derivative of the oracle in row i of a field, with what has no gradient held.
double oracle_slope(const json& config, const ExactPairLogps& in,
                    Eigen::ArrayXd ExactPairLogps::*field, int i) {
  constexpr double kStep = 1e-5;
  ExactPairLogps up = in, down = in;
  (up.*field)[i] += kStep;
  (down.*field)[i] -= kStep;
  const Real difference = loss_oracle(config, up, &in)->loss - loss_oracle(config, down, &in)->loss;
  return static_cast<double>(difference / ((up.*field)[i] - static_cast<Real>((down.*field)[i])));
}

TEST_CASE("gradients are those of the oracle", "[contract]") {
  for (const json& config : configurations()) {
    CAPTURE(config.dump());
    const Loss loss = make_loss(config.dump());
    const ExactPairLogps in = random_pairs(4, samples_of(loss), 11, 2);
    const auto oracle = loss_oracle(config, in);
    REQUIRE(oracle.has_value());
    const LossOutput out = loss(to_tensors(in));
    for (std::size_t f = 0; f < kPairFields<at::Tensor>.size(); ++f) {
      const auto& field = kPairFields<at::Tensor>[f];
      if (field.gradient == nullptr) continue;
      CAPTURE(field.name);
      const auto member = kPairFields<Eigen::ArrayXd>[f].value;
      const at::Tensor& gradient = out.*field.gradient;
      const bool estimated = oracle->sample_gradient && field.name == "sample_logps";
      for (int i = 0; i < (in.*member).size(); ++i) {
        CAPTURE(i);
        const double expected =
            estimated ? (*oracle->sample_gradient)[i] : oracle_slope(config, in, member, i);
        const double got = gradient.defined() ? gradient[i].item<double>() : 0;
        CHECK(got == Approx(expected).epsilon(1e-7).margin(1e-10));
      }
    }
  }
}

TEST_CASE("works without a graph and scales an outer gradient", "[contract]") {
  const Loss loss = make_loss(R"({"type": "dpo"})");
  PairLogps in = to_tensors(random_pairs(3, 0, 6));
  CHECK_FALSE(loss(in).loss.requires_grad());
  in.chosen_logps.requires_grad_();
  const LossOutput out = loss(in);
  (3 * out.loss).backward();
  CHECK(at::equal(in.chosen_logps.grad(), 3 * out.grad_chosen));
  {
    const at::NoGradGuard no_grad;
    CHECK_FALSE(loss(in).loss.requires_grad());
  }
}

TEST_CASE("policy equal to reference gives exactly log 2", "[contract]") {
  for (const char* type : {"dpo", "robust_dpo", "f_dpo", "vpo", "hypo"}) {
    CAPTURE(type);
    const Loss loss = make_loss(json{{"type", type}}.dump());
    ExactPairLogps in = random_pairs(4, samples_of(loss), 51);
    in.chosen_logps = in.ref_chosen_logps;
    in.rejected_logps = in.ref_rejected_logps;
    in.sample_logps = in.ref_sample_logps;
    CHECK(loss(to_tensors(in)).loss.item<double>() == std::numbers::ln2);
    CHECK(loss(to_tensors(in, at::kFloat)).loss.item<float>() ==
          static_cast<float>(std::numbers::ln2));
  }
}

TEST_CASE("an unknown key is refused with the nearest known one", "[contract]") {
  for (const std::string& name : registered_losses()) {
    const std::string option = find_loss(name).options.front().name;
    const json config{{"type", name}, {option + "x", 1}};
    CHECK_THROWS_TEXT(
        make_loss(config.dump()), ConfigError,
        name + ": expected a known option, got '" + option + "x'; did you mean '" + option + "'?");
  }
}

TEST_CASE("wrong shapes, dtypes and missing tensors are refused", "[contract]") {
  for (const std::string& name : registered_losses()) {
    CAPTURE(name);
    const Loss loss = make_loss(json{{"type", name}}.dump());
    const LossRequirements needs = loss.requirements();
    const PairLogps good = to_tensors(random_pairs(4, samples_of(loss), 61));

    PairLogps bad = good;
    bad.chosen_logps = at::Tensor();
    CHECK_THROWS_TEXT(loss(bad), ShapeError,
                      name + ": expected chosen_logps of shape [batch], got no tensor");
    bad.chosen_logps = at::zeros({0}, at::kDouble);
    CHECK_THROWS_TEXT(loss(bad), ShapeError,
                      name + ": expected chosen_logps of shape [batch] with batch >= 1, got [0]");
    bad.chosen_logps = at::zeros({4, 2}, at::kDouble);
    CHECK_THROWS_TEXT(
        loss(bad), ShapeError,
        name + ": expected chosen_logps of shape [batch] with batch >= 1, got [4, 2]");
    bad.chosen_logps = at::zeros({4}, at::kHalf);
    CHECK_THROWS_TEXT(loss(bad), DtypeError,
                      name + ": expected chosen_logps of dtype Float or Double, got Half");

    for (const auto& field : kPairFields<at::Tensor>) {
      if (!field.needed(needs) || field.name == "chosen_logps") continue;
      const at::Tensor& x = good.*field.value;
      const std::string expected = name + ": expected " + std::string(field.name);
      const std::string shape = " of shape [" + std::to_string(x.size(0)) + "]";
      bad = good;
      bad.*field.value = at::Tensor();
      CHECK_THROWS_TEXT(loss(bad), ShapeError, expected + shape + ", got no tensor");
      bad.*field.value = x.slice(0, 0, 3);
      CHECK_THROWS_TEXT(loss(bad), ShapeError, expected + shape + ", got [3]");
      const bool logps = !field.is_number();
      bad.*field.value = x.to(logps ? at::kFloat : at::kInt);
      CHECK_THROWS_TEXT(loss(bad), DtypeError,
                        expected + (logps ? " of dtype Double, got Float"
                                          : " of dtype int64 or floating, got Int"));
      bad.*field.value = at::zeros_like(x, at::device(at::kMeta));
      CHECK_THROWS_TEXT(loss(bad), DeviceError, expected + " on cpu, got meta");
    }
    if (needs.samples_per_prompt > 0) {
      bad = good;
      bad.samples_per_prompt = 0;
      CHECK_THROWS_TEXT(loss(bad), ShapeError,
                        name + ": expected " + std::to_string(needs.samples_per_prompt) +
                            " fresh samples a prompt, got 0");
    }
    if (needs.whole_step) {
      bad = good;
      bad.totals.pairs = 6;
      CHECK_THROWS_TEXT(loss(bad), ShapeError,
                        name +
                            ": expected all 6 rows of the step at once, got 4; each row's loss "
                            "depends on the others");
    }
  }
}

}  // namespace
}  // namespace prefopt
