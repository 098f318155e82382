// SPDX-License-Identifier: Apache-2.0

// What every registered loss must keep, checked by looping the registry: a new loss is covered
// unasked, and fails here until it has an oracle in support/loss_oracle.cpp.

#include <array>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <numbers>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/loss_oracle.h"
#include "support/pairs.h"

namespace prefopt {
namespace {

using nlohmann::json;
using namespace testing_support;

// Each loss with its defaults, then with every value of every choice and flag and with numbers
// moved off their defaults, one option at a time and then some together.
std::vector<json> configurations() {
  std::vector<json> all;
  for (const std::string& name : registered_losses()) {
    const json base = json::parse(make_loss(json{{"type", name}}.dump()).config());
    all.push_back(base);
    for (const FieldDoc& option : find_loss(name).options) {
      if (option.type == "flag") {
        json changed = base;
        changed[option.name] = !base[option.name].get<bool>();
        all.push_back(changed);
      } else if (option.type == "choice") {
        for (const json& value : json::parse("[" + [&] {
               std::string list = option.range;
               for (char& c : list) c = c == '\'' ? '"' : c;
               return list;
             }() + "]")) {
          if (value == base[option.name] || value == "total_variation") continue;
          json changed = base;
          changed[option.name] = value;
          all.push_back(changed);
        }
      } else if (option.name == "label_smoothing") {
        json changed = base;
        changed[option.name] = 0.3;
        all.push_back(changed);
      } else if (option.name == "num_samples") {
        for (int k : {1, 4}) {
          json changed = base;
          changed[option.name] = k;
          all.push_back(changed);
        }
      } else if (option.type == "number") {
        json changed = base;
        changed[option.name] = 0.37;
        all.push_back(changed);
      }
    }
  }
  for (const char* text : {
           R"({"type": "dpo", "beta": 0.7, "label_smoothing": 0.2, "divergence": "forward_kl"})",
           R"({"type": "robust", "beta": 0.4, "label_smoothing": 0.45, "divergence": "jeffrey"})",
           R"({"type": "f_dpo", "divergence": "alpha_divergence", "divergence_alpha": 1})",
           R"({"type": "f_dpo", "divergence": "alpha_divergence", "divergence_alpha": 0})",
           R"({"type": "f_dpo", "divergence": "alpha_divergence", "divergence_alpha": 1.6})",
           R"({"type": "ipo", "tau": 0.8, "length_normalized": false, "divergence": "forward_kl"})",
           R"({"type": "rpo", "reduction": "sum", "eta": 0.02, "divergence": "js_divergence"})",
           R"({"type": "vpo", "calibration": "samples", "num_samples": 3, "mode": "online"})",
           R"({"type": "hypo", "num_samples": 3, "clip": 1.5, "token_mean": true, "lambda": 0.5})",
       }) {
    all.push_back(json::parse(make_loss(text).config()));
  }
  return all;
}

int samples_of(const Loss& loss) {
  return static_cast<int>(loss.requirements().samples_per_prompt);
}

std::vector<const at::Tensor*> gradients(const LossOutput& out) {
  return {&out.grad_chosen, &out.grad_rejected, &out.grad_samples};
}

std::vector<at::Tensor*> differentiable(PairLogps& in) {
  return {&in.chosen_logps, &in.rejected_logps, &in.sample_logps};
}

TEST_CASE("every loss equals its oracle in float64 and float32", "[contract]") {
  for (const json& config : configurations()) {
    CAPTURE(config.dump());
    const Loss loss = make_loss(config.dump());
    for (unsigned seed : {1u, 2u, 3u}) {
      const ExactPairLogps in = random_pairs(7, samples_of(loss), seed, 2);
      const auto oracle = loss_oracle(config, in);
      REQUIRE(oracle.has_value());
      const double got = loss(to_tensors(in)).loss.item<double>();
      CHECK(got == Approx(oracle->loss).epsilon(1e-12).margin(1e-12));

      // float32 sees the inputs after rounding, so the oracle does too.
      ExactPairLogps rounded = in;
      for (auto* x :
           {&rounded.chosen_logps, &rounded.rejected_logps, &rounded.ref_chosen_logps,
            &rounded.ref_rejected_logps, &rounded.sample_logps, &rounded.ref_sample_logps}) {
        *x = x->cast<float>().cast<double>();
      }
      const LossOutput single = loss(to_tensors(rounded, at::kFloat));
      CHECK(single.loss.scalar_type() == at::kFloat);
      CHECK(single.loss.item<double>() ==
            Approx(loss_oracle(config, rounded)->loss).epsilon(2e-6).margin(1e-6));
    }
  }
}

TEST_CASE("gradient coefficients, autograd and differences of the oracle agree", "[contract]") {
  for (const json& config : configurations()) {
    CAPTURE(config.dump());
    const Loss loss = make_loss(config.dump());
    ExactPairLogps in = random_pairs(4, samples_of(loss), 11, 2);
    const auto oracle = loss_oracle(config, in);
    REQUIRE(oracle.has_value());
    PairLogps tensors = to_tensors(in);
    for (at::Tensor* x : differentiable(tensors)) {
      if (x->defined()) x->requires_grad_();
    }
    const LossOutput out = loss(tensors);
    out.loss.backward();

    const auto check = [&](const char* side, Eigen::ArrayXd ExactPairLogps::*member,
                           const at::Tensor& coefficients, const at::Tensor& autograd) {
      CAPTURE(side);
      const bool by_score_function =
          oracle->sample_gradient && member == &ExactPairLogps::sample_logps;
      for (int i = 0; i < (in.*member).size(); ++i) {
        CAPTURE(i);
        double expected = 0;
        if (by_score_function) {
          expected = (*oracle->sample_gradient)[i];
        } else {
          const double h = 1e-5;
          ExactPairLogps up = in, down = in;
          (up.*member)[i] += h;
          (down.*member)[i] -= h;
          expected = (loss_oracle(config, up)->loss - loss_oracle(config, down)->loss) / (2 * h);
        }
        const double coefficient = coefficients.defined() ? coefficients[i].item<double>() : 0;
        const double gradient = autograd.defined() ? autograd[i].item<double>() : 0;
        CHECK(coefficient == Approx(expected).epsilon(1e-6).margin(1e-8));
        CHECK(gradient == coefficient);
      }
    };
    check("chosen", &ExactPairLogps::chosen_logps, out.grad_chosen, tensors.chosen_logps.grad());
    check("rejected", &ExactPairLogps::rejected_logps, out.grad_rejected,
          tensors.rejected_logps.grad());
    if (samples_of(loss) > 0) {
      check("samples", &ExactPairLogps::sample_logps, out.grad_samples,
            tensors.sample_logps.grad());
    }
  }
}

TEST_CASE("anchor values", "[contract]") {
  for (const std::string& name : registered_losses()) {
    const Loss loss = make_loss(json{{"type", name}}.dump());
    REQUIRE_FALSE(loss.info().anchors.empty());
    for (const LossAnchor& anchor : loss.info().anchors) {
      CAPTURE(name, anchor.chosen_logratio, anchor.rejected_logratio);
      const int k = samples_of(loss);
      ExactPairLogps in;
      in.ref_chosen_logps = in.ref_rejected_logps = Eigen::ArrayXd::Constant(1, -10);
      in.chosen_logps = in.ref_chosen_logps + anchor.chosen_logratio;
      in.rejected_logps = in.ref_rejected_logps + anchor.rejected_logratio;
      in.chosen_lens = in.rejected_lens = Eigen::ArrayXd::Constant(1, 5);
      in.samples_per_prompt = k;
      in.sample_logps = in.ref_sample_logps = Eigen::ArrayXd::Constant(k, -10);
      in.sample_lens = Eigen::ArrayXd::Constant(k, 5);
      CHECK(loss(to_tensors(in)).loss.item<double>() == Approx(anchor.loss).epsilon(1e-14));
    }
  }
}

TEST_CASE("finite at log-ratios up to 1e4 in both dtypes", "[contract]") {
  const std::vector<double> extremes{0, 1e-30, 1, 29.9, 30.1, 88, 89, 300.5, 710, 1e4};
  std::vector<double> logratios;
  for (double x : extremes) {
    logratios.push_back(x);
    logratios.push_back(-x);
  }
  for (const json& config : configurations()) {
    CAPTURE(config.dump());
    const Loss loss = make_loss(config.dump());
    const int k = samples_of(loss);
    for (at::ScalarType dtype : {at::kFloat, at::kDouble}) {
      for (double w : logratios) {
        for (double l : logratios) {
          ExactPairLogps in;
          in.ref_chosen_logps = in.ref_rejected_logps = Eigen::ArrayXd::Constant(1, 0);
          in.chosen_logps = in.ref_chosen_logps + w;
          in.rejected_logps = in.ref_rejected_logps + l;
          in.chosen_lens = in.rejected_lens = Eigen::ArrayXd::Constant(1, 5);
          in.samples_per_prompt = k;
          in.ref_sample_logps = Eigen::ArrayXd::Zero(k);
          in.sample_logps = Eigen::ArrayXd::Constant(k, w);
          in.sample_lens = Eigen::ArrayXd::Constant(k, 3);
          const LossOutput out = loss(to_tensors(in, dtype));
          bool finite = out.loss.isfinite().item<bool>();
          for (const at::Tensor* x : gradients(out)) {
            finite = finite && (!x->defined() || x->isfinite().all().item<bool>());
          }
          if (!finite) {
            CAPTURE(w, l, dtype);
            FAIL_CHECK("not finite");
          }
        }
      }
    }
  }
}

TEST_CASE("no loss sends a gradient into the reference", "[contract]") {
  for (const json& config : configurations()) {
    CAPTURE(config.dump());
    const Loss loss = make_loss(config.dump());
    PairLogps in = to_tensors(random_pairs(3, samples_of(loss), 5));
    in.chosen_logps.requires_grad_();
    std::vector<at::Tensor> references{in.ref_chosen_logps, in.ref_rejected_logps};
    if (in.ref_sample_logps.defined()) references.push_back(in.ref_sample_logps);
    for (at::Tensor& reference : references) reference.requires_grad_();
    const LossOutput out = loss(in);
    out.loss.backward();
    for (const at::Tensor& reference : references) CHECK_FALSE(reference.grad().defined());
    CHECK(in.chosen_logps.grad().defined());
    for (const at::Tensor* x :
         {&out.losses, &out.grad_chosen, &out.grad_rejected, &out.chosen_rewards, &out.margins}) {
      if (x->defined()) CHECK_FALSE(x->requires_grad());
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

TEST_CASE("permuting the pairs permutes the result", "[contract]") {
  const std::vector<int> order{4, 0, 5, 2, 1, 3};
  for (const json& config : configurations()) {
    CAPTURE(config.dump());
    const Loss loss = make_loss(config.dump());
    const int k = samples_of(loss);
    const ExactPairLogps in = random_pairs(6, k, 21);
    ExactPairLogps permuted = in;
    for (int i = 0; i < 6; ++i) {
      for (auto member : {&ExactPairLogps::chosen_logps, &ExactPairLogps::rejected_logps,
                          &ExactPairLogps::ref_chosen_logps, &ExactPairLogps::ref_rejected_logps,
                          &ExactPairLogps::chosen_lens, &ExactPairLogps::rejected_lens}) {
        (permuted.*member)[i] = (in.*member)[order[i]];
      }
      for (auto member : {&ExactPairLogps::sample_logps, &ExactPairLogps::ref_sample_logps,
                          &ExactPairLogps::sample_lens}) {
        (permuted.*member).segment(i * k, k) = (in.*member).segment(order[i] * k, k);
      }
    }
    const LossOutput straight = loss(to_tensors(in));
    const LossOutput mixed = loss(to_tensors(permuted));
    CHECK(mixed.loss.item<double>() == Approx(straight.loss.item<double>()).epsilon(1e-13));
    for (int i = 0; i < 6; ++i) {
      CHECK(mixed.losses[i].item<double>() == straight.losses[order[i]].item<double>());
      CHECK(mixed.grad_chosen[i].item<double>() ==
            Approx(straight.grad_chosen[order[i]].item<double>()).epsilon(1e-13));
    }
  }
}

TEST_CASE("a step cut in any way gives the whole", "[contract]") {
  constexpr int kPairs = 5;
  for (const json& config : configurations()) {
    CAPTURE(config.dump());
    const Loss loss = make_loss(config.dump());
    ExactPairLogps whole = random_pairs(kPairs, samples_of(loss), 31);
    const LossOutput expected = loss(to_tensors(whole));
    whole.totals = {.pairs = kPairs,
                    .chosen_tokens = whole.chosen_lens.sum(),
                    .rejected_tokens = whole.rejected_lens.sum()};
    // Bit i of `cuts` set: a cut after row i.
    for (int cuts = 0; cuts < 1 << (kPairs - 1); ++cuts) {
      double sum = 0;
      std::array<std::vector<at::Tensor>, 3> parts;
      for (int first = 0; first < kPairs;) {
        int last = first;
        while (last < kPairs - 1 && !(cuts >> last & 1)) ++last;
        const LossOutput part = loss(to_tensors(slice(whole, first, last + 1 - first)));
        sum += part.loss.item<double>();
        for (std::size_t side = 0; side < parts.size(); ++side) {
          if (gradients(part)[side]->defined()) parts[side].push_back(*gradients(part)[side]);
        }
        first = last + 1;
      }
      CHECK(sum == Approx(expected.loss.item<double>()).epsilon(1e-12));
      for (std::size_t side = 0; side < parts.size(); ++side) {
        CAPTURE(side);
        const at::Tensor& whole_gradient = *gradients(expected)[side];
        REQUIRE(parts[side].empty() == !whole_gradient.defined());
        if (whole_gradient.defined()) {
          CHECK(at::allclose(at::cat(parts[side]), whole_gradient, 1e-12, 1e-16));
        }
      }
    }
  }
}

TEST_CASE("losses average to the loss and terms add up to it", "[contract]") {
  for (const json& config : configurations()) {
    CAPTURE(config.dump());
    const Loss loss = make_loss(config.dump());
    const LossOutput out = loss(to_tensors(random_pairs(6, samples_of(loss), 41)));
    CHECK(out.losses.mean().item<double>() == Approx(out.loss.item<double>()).epsilon(1e-12));
    double sum = 0;
    for (const LossTerm& term : out.terms) sum += term.value.item<double>();
    if (!out.terms.empty()) CHECK(sum == Approx(out.loss.item<double>()).epsilon(1e-12));
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

TEST_CASE("configuration survives the round trip", "[contract]") {
  for (const json& config : configurations()) {
    CAPTURE(config.dump());
    CHECK(json::parse(make_loss(config.dump()).config()) == config);
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

    if (needs.rejected) {
      bad = good;
      bad.rejected_logps = good.rejected_logps.slice(0, 0, 3);
      CHECK_THROWS_TEXT(loss(bad), ShapeError,
                        name + ": expected rejected_logps of shape [4], got [3]");
    }
    if (needs.reference) {
      bad = good;
      bad.ref_chosen_logps = good.ref_chosen_logps.to(at::kFloat);
      CHECK_THROWS_TEXT(loss(bad), DtypeError,
                        name + ": expected ref_chosen_logps of dtype Double, got Float");
      bad.ref_chosen_logps = at::zeros({4}, at::device(at::kMeta).dtype(at::kDouble));
      CHECK_THROWS_TEXT(loss(bad), DeviceError,
                        name + ": expected ref_chosen_logps on cpu, got meta");
    }
    if (name == "rpo" || name == "ipo" || name == "sft") {
      bad = good;
      bad.chosen_lens = at::ones({3}, at::kLong);
      CHECK_THROWS_TEXT(loss(bad), ShapeError,
                        name + ": expected chosen_lens of shape [4], got [3]");
      bad.chosen_lens = at::ones({4}, at::kInt);
      CHECK_THROWS_TEXT(loss(bad), DtypeError,
                        name + ": expected chosen_lens of dtype int64 or floating, got Int");
    }
    if (needs.samples_per_prompt > 0) {
      bad = good;
      bad.samples_per_prompt = 0;
      CHECK_THROWS_TEXT(loss(bad), ShapeError,
                        name + ": expected " + std::to_string(needs.samples_per_prompt) +
                            " fresh samples a prompt, got 0");
      bad = good;
      bad.sample_logps = at::Tensor();
      CHECK_THROWS_TEXT(loss(bad), ShapeError,
                        name + ": expected sample_logps of shape [" +
                            std::to_string(4 * needs.samples_per_prompt) + "], got no tensor");
    }
  }
}

}  // namespace
}  // namespace prefopt
