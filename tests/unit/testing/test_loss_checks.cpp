// SPDX-License-Identifier: Apache-2.0

// Losses with one fault each, and what the checks say of them. The sound one is -beta delta, whose
// derivative is known by hand: 0.1 / 4 = 0.025 with the default beta and batch.

#include <algorithm>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/losses/pair_fields.h"
#include "prefopt/losses/pairwise_loss.h"
#include "prefopt/testing/loss_checks.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using testing::check_loss;
using testing::LossReport;

struct LinearOptions {
  double beta = 0.1;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "slope"}, beta, Range::above(0));
    score.fields(v);
    pair.fields(v);
  }
};

struct LinearLink {
  double beta;
  double slope;

  template <class T>
  T value(const T& delta) const {
    return -beta * delta;
  }
  template <class T>
  T derivative(const T& delta) const {
    return math::constant(delta, slope);
  }
};

class LinearLoss : public PairwiseLoss<LinearLoss, LinearOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;
  LinearLink link() const { return {options_.beta, -options_.beta}; }
  static LossInfo info() { return {.name = "my_loss", .anchors = {{0, 0, 0}, {10, 0, -1}}}; }
  static LossProperties properties() {
    return {.log_ratios_only = true, .difference_only = true, .monotone = true};
  }
};

class WrongSlope : public PairwiseLoss<WrongSlope, LinearOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;
  LinearLink link() const { return {options_.beta, options_.beta}; }
  static LossInfo info() { return {.name = "my_loss"}; }
};

class WrongAnchor : public LinearLoss {
 public:
  static LossInfo info() { return {.name = "my_loss", .anchors = {{10, 0, 1}}}; }
};

// Faults beyond the base classes: a loss that derives from nothing.
class OwnLoss {
 public:
  const LinearOptions& options() const { return options_; }
  LossRequirements requirements() const { return {}; }
  static LossInfo info() { return {.name = "my_loss"}; }

 protected:
  static at::Tensor delta(const PairLogps& in) {
    return (in.chosen_logps - in.ref_chosen_logps) - (in.rejected_logps - in.ref_rejected_logps);
  }

  // The value with autograd's graph, and the right grad_* for a division by `pairs`.
  static LossOutput linear(const at::Tensor& delta, double pairs) {
    LossOutput out;
    out.losses = (-0.1 * delta).detach();
    out.loss = (-0.1 * delta).sum() / pairs;
    out.grad_chosen = at::full_like(out.losses, -0.1 / pairs);
    out.grad_rejected = -out.grad_chosen;
    return out;
  }

  LinearOptions options_;
};

class LeakyLoss : public OwnLoss {
 public:
  LossOutput forward(const PairLogps& given) const {
    const PairLogps in = detail::checked_inputs(given, {}, "my_loss");
    LossOutput out = linear(delta(given), step_pairs(in));
    out.losses = -0.1 * delta(in);
    return out;
  }
};

class CutDependentLoss : public OwnLoss {
 public:
  LossOutput forward(const PairLogps& given) const {
    PairLogps in = detail::checked_inputs(given, {}, "my_loss");
    LossOutput out = linear(delta(in), static_cast<double>(in.chosen_logps.size(0)));
    detail::attach_gradient(out, given);
    return out;
  }
};

class NosyLoss : public OwnLoss {
 public:
  LossOutput forward(const PairLogps& given) const {
    PairLogps in = detail::checked_inputs(given, {}, "my_loss");
    LossOutput out = linear(at::zeros_like(in.chosen_logps), step_pairs(in));
    out.grad_chosen = out.grad_rejected = at::zeros_like(in.chosen_logps);
    if (given.margins.defined()) out.losses = out.losses + given.margins;
    detail::attach_gradient(out, given);
    return out;
  }
};

class UncheckedLoss : public OwnLoss {
 public:
  LossOutput forward(const PairLogps& in) const {
    LossOutput out = linear(delta(in).detach(), step_pairs(in));
    detail::attach_gradient(out, in);
    return out;
  }
};

class HalfLoss : public OwnLoss {
 public:
  LossOutput forward(const PairLogps& given) const {
    LossOutput out = LinearLoss().forward(given);
    out.losses = out.losses / 2;
    return out;
  }
};

// Declares that rows depend on each other, and takes parts of a step nevertheless.
class LooseLoss : public OwnLoss {
 public:
  LossRequirements requirements() const { return {.whole_step = true}; }
  LossOutput forward(const PairLogps& given) const { return LinearLoss().forward(given); }
};

// Keeps a mean from step to step, of whatever part of a step it sees last.
class ForgetfulLoss : public LinearLoss {
 public:
  LossRequirements requirements() const {
    LossRequirements needs = LinearLoss::requirements();
    needs.running_mean = true;
    return needs;
  }
};

const testing::LossCheckOptions kSeed7{.seed = 7};
const std::string kWhere = " (loss 'my_loss', batch of 4, seed 7)";

std::vector<std::string> texts_of(const LossReport& report, const std::string& check) {
  std::vector<std::string> texts;
  for (const testing::Failure& failure : report.failures) {
    if (failure.check == check) texts.push_back(failure.text);
  }
  return texts;
}

TEST_CASE("a sound loss passes", "[testing]") {
  const LossReport report = check_loss(LinearLoss());
  CHECK(report.text() == "");
  CHECK(report.ok());
  CHECK(check_loss(LinearLoss(), {.batch = 9, .seed = 3}).ok());
}

TEST_CASE("a wrong derivative is found", "[testing]") {
  CHECK(
      check_loss(WrongSlope(), kSeed7).text() ==
      "gradient of chosen_logps at row 0: expected -0.025 by finite differences, got 0.025" +
          kWhere +
          "\n"
          "gradient of rejected_logps at row 0: expected 0.025 by finite differences, got -0.025" +
          kWhere);
}

TEST_CASE("differences can be left out or taken of a surrogate", "[testing]") {
  CHECK(check_loss(WrongSlope(), {.no_difference = {"chosen_logps", "rejected_logps"}}).ok());
  const auto rising = [](const PairLogps& moved, const PairLogps& /*frozen*/) {
    return 0.1 * (moved.chosen_logps - moved.rejected_logps).mean().item<double>();
  };
  CHECK(check_loss(WrongSlope(), {.surrogate = rising}).ok());
  CHECK(
      texts_of(check_loss(LinearLoss(), {.seed = 7, .surrogate = rising}), "difference") ==
      std::vector<std::string>{
          "gradient of chosen_logps at row 0: expected 0.025 by finite differences, got -0.025" +
              kWhere,
          "gradient of rejected_logps at row 0: expected -0.025 by finite differences, got 0.025" +
              kWhere});
}

TEST_CASE("a running mean of parts of a step is found", "[testing]") {
  CHECK(check_loss(Loss(ForgetfulLoss()), kSeed7).text() ==
        "whole_step of a loss with running_mean: expected true, got false" + kWhere);
}

TEST_CASE("a wrong anchor is found, unless the options are others", "[testing]") {
  CHECK(check_loss(Loss(WrongAnchor()), kSeed7).text() ==
        "anchor at log-ratios 10 and 0: expected 1, got -1" + kWhere);
  CHECK(check_loss(Loss(WrongAnchor()), {.anchors = false}).ok());
}

TEST_CASE("a gradient into the reference is found", "[testing]") {
  // The outer gradient of seed 7 is 0.5 + frac(7 * 0.618034) = 0.826238.
  CHECK(check_loss(LeakyLoss(), kSeed7).text() ==
        "autograd's gradient of ref_chosen_logps at row 0: expected none, got 0.0206559" + kWhere +
            "\nautograd's gradient of ref_rejected_logps at row 0: expected none, got -0.0206559" +
            kWhere);
}

TEST_CASE("a division by the pairs at hand is found", "[testing]") {
  const LossReport report = check_loss(CutDependentLoss(), kSeed7);
  const std::vector<std::string> texts = texts_of(report, "cut");
  CHECK(texts.size() == report.failures.size());
  CHECK(std::ranges::count(texts,
                           "gradient of chosen_logps at row 0 of a step in parts of one row: "
                           "expected -0.025, got -0.1" +
                               kWhere) == 1);
}

TEST_CASE("a use of an input that is not declared is found", "[testing]") {
  CHECK(check_loss(NosyLoss(), kSeed7).text() ==
        "losses at row 0 with NaN in the inputs that are not declared: expected 0, got nan" +
            kWhere);
}

TEST_CASE("an input that is not checked is found", "[testing]") {
  const std::vector<std::string> texts = texts_of(check_loss(UncheckedLoss(), kSeed7), "misuse");
  REQUIRE_FALSE(texts.empty());
  CHECK(texts.front().starts_with(
      "no chosen_logps: expected an error of prefopt, got another exception: "));
}

TEST_CASE("losses that do not average to the loss are found", "[testing]") {
  const std::vector<std::string> texts = texts_of(check_loss(HalfLoss(), kSeed7), "mean");
  REQUIRE(texts.size() == 1);
  CHECK(texts.front().starts_with("mean of losses: expected "));
}

TEST_CASE("a loss of whole steps that takes a part is found", "[testing]") {
  CHECK(check_loss(LooseLoss(), kSeed7).text() ==
        "3 of 4 rows of a loss that declares whole_step: expected a ShapeError, got none" + kWhere);
}

TEST_CASE("declared properties are checked", "[testing]") {
  const auto report = check_loss(Loss(LinearLoss()), {.properties = {.non_negative = true}});
  REQUIRE(report.failures.size() == 1);
  CHECK(report.failures.front().check == "property");
  CHECK(report.text().find(": expected >= 0, got -") != std::string::npos);
  const auto rising = texts_of(
      check_loss(Loss(WrongSlope()), {.seed = 7, .properties = {.monotone = true}}), "property");
  CHECK(rising == std::vector<std::string>{
                      "gradient of chosen_logps at row 0: expected <= 0, got 0.025" + kWhere,
                      "gradient of rejected_logps at row 0: expected >= 0, got -0.025" + kWhere});
}

TEST_CASE("one row is too few to check", "[testing]") {
  CHECK_THROWS_TEXT(check_loss(LinearLoss(), {.batch = 1}), ConfigError,
                    "check_loss: expected a batch of at least 2 rows, got 1");
}

TEST_CASE("random inputs are those that are needed", "[testing]") {
  const LossRequirements needs{
      .inputs = kPairLogps | kPairReferenceLogps | kPairLens | kSampleLogps |
                InputSet{Input::gold_logps, Input::gold_lens, Input::sample_lens},
      .samples_per_prompt = 3};
  const PairLogps in = testing::random_pair_logps(needs, 5, 2);
  const PairLogps again = testing::random_pair_logps(needs, 5, 2);
  const PairLogps other = testing::random_pair_logps(needs, 5, 3);
  for (const auto& field : kPairFields<at::Tensor>) {
    CAPTURE(field.name);
    const at::Tensor& x = in.*field.value;
    REQUIRE(x.defined() == field.needed(needs));
    if (!x.defined()) continue;
    CHECK(x.size(0) == (field.per_sample() ? 15 : 5));
    CHECK(at::equal(x, again.*field.value));
    CHECK_FALSE(at::equal(x, other.*field.value));
    if (!field.is_number()) CHECK(x.lt(0).all().item<bool>());
  }
  const at::Tensor logratio = in.chosen_logps - in.ref_chosen_logps;
  CHECK(logratio.abs().max().item<double>() <= 3);
  CHECK(in.chosen_lens.min().item<std::int64_t>() >= 1);
  CHECK(in.chosen_lens.max().item<std::int64_t>() <= 30);
}

}  // namespace
}  // namespace prefopt
