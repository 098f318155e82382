// SPDX-License-Identifier: Apache-2.0
#include <Eigen/Core>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/exact/random.h"
#include "prefopt/objectives/token_loss.h"
#include "prefopt/objectives/token_sequences.h"
#include "support/catch.h"
#include "support/close.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using Eigen::ArrayXd;
using Rows = BasicTokenRows<ArrayXd>;
using testing_support::check_close;

constexpr std::int64_t kLens[] = {3, 1, 4, 2};
constexpr std::int64_t kTokens = 10;

/// Four completions with numbers of a seed; steps of two tokens.
Rows random_rows(std::uint64_t seed) {
  exact::Random random(seed);
  const auto numbers = [&] { return ArrayXd(random.normals(kTokens, 1).col(0)); };
  Rows in{.logps = -numbers().abs(),
          .ref_logps = -numbers().abs(),
          .values = numbers(),
          .log_normalizers = numbers(),
          .exact_kls = numbers().abs(),
          .rewards = ArrayXd(kTokens),
          .completions = ArrayXd(kTokens),
          .steps = ArrayXd(kTokens),
          .lens = ArrayXd(kTokens)};
  Eigen::Index at = 0;
  for (const std::int64_t length : kLens) {
    const double reward = random.normal();
    for (std::int64_t t = 0; t < length; ++t, ++at) {
      in.rewards[at] = reward;
      in.completions[at] = static_cast<double>(in.completion_count);
      in.steps[at] = static_cast<double>(in.step_count + t / 2);
      in.lens[at] = static_cast<double>(length);
    }
    in.step_count += (length + 1) / 2;
    ++in.completion_count;
  }
  in.totals = {.tokens = kTokens, .completions = 4};
  return in;
}

/// Tokens [begin, begin + count), which are completions [first, first + completions).
Rows part_of(const Rows& all, Eigen::Index begin, Eigen::Index count, std::int64_t first,
             std::int64_t completions) {
  Rows part = all;
  for (ArrayXd* const x :
       {&part.logps, &part.ref_logps, &part.values, &part.log_normalizers, &part.exact_kls,
        &part.rewards, &part.completions, &part.steps, &part.lens}) {
    *x = ArrayXd(x->segment(begin, count));
  }
  part.completions -= static_cast<double>(first);
  part.completion_count = completions;
  part.steps -= part.steps[0];
  part.step_count = static_cast<std::int64_t>(part.steps[count - 1]) + 1;
  return part;
}

BasicTokenLossOutput<ArrayXd> evaluate(const std::string& config, const Rows& in) {
  return make_token_loss(config).formula<ArrayXd>(in);
}

const std::vector<std::string>& configs() {
  static const std::vector<std::string> all = {
      R"({"type": "oreo"})",
      R"({"type": "oreo", "beta": 0.4, "alpha": 0.2, "level": "response"})",
      R"({"type": "oreo", "beta": 0.4, "level": "step"})",
      R"({"type": "iqlearn", "lambda": 0.3})",
      R"({"type": "iqlearn", "lambda": 0.3, "gamma": 0.7, "reduction": "sum"})",
      R"({"type": "iqlearn", "lambda": 0.3, "own_samples": 0.2})"};
  return all;
}

/// Checks `gradient` by central differences of `value` in each number of `x`.
void check_slopes(ArrayXd& x, const ArrayXd& gradient, const std::function<double()>& value) {
  constexpr double kStep = 1e-6;
  for (Eigen::Index t = 0; t < x.size(); ++t) {
    CAPTURE(t);
    const double before = x[t];
    x[t] = before + kStep;
    const double above = value();
    x[t] = before - kStep;
    const double below = value();
    x[t] = before;
    check_close(gradient[t], (above - below) / (2 * kStep), 1e-6, 1e-8);
  }
}

TEST_CASE("losses on tokens: derivatives of iqlearn are those of its value", "[objectives]") {
  for (const bool are_own : {false, true}) {
    for (const std::string& config : configs()) {
      if (config.find("iqlearn") == std::string::npos) continue;
      CAPTURE(config, are_own);
      Rows in = random_rows(1);
      in.are_own = are_own;
      const auto out = evaluate(config, in);
      const auto value = [&] { return evaluate(config, in).loss; };
      check_slopes(in.logps, out.grad_logps, value);
      check_slopes(in.log_normalizers, out.grad_log_normalizers, value);
    }
  }
}

TEST_CASE("losses on tokens: derivatives of oreo hold what its equations hold", "[objectives]") {
  Rows in = random_rows(2);
  constexpr double kBeta = 0.4, kAlpha = 0.2;
  const auto config = [&](const std::string& level) {
    return R"({"type": "oreo", "beta": 0.4, "alpha": 0.2, "level": ")" + level + R"("})";
  };
  for (const std::string level : {"token", "step", "response"}) {
    CAPTURE(level);
    const auto out = evaluate(config(level), in);
    check_slopes(in.values, out.grad_values, [&] { return evaluate(config(level), in).loss; });
    check_slopes(in.exact_kls, out.grad_exact_kls,
                 [&] { return evaluate(config(level), in).loss; });
    // By the paper: the square of the state's residual through the log-ratios of its own segment,
    // the values and all later ones held.
    const ArrayXd ratios = in.logps - in.ref_logps;
    const ArrayXd segments = level == "token"  ? ArrayXd::LinSpaced(kTokens, 0, kTokens - 1)
                             : level == "step" ? in.steps
                                               : in.completions;
    double loss = 0;
    ArrayXd expected = ArrayXd::Zero(kTokens);
    for (Eigen::Index t = 0; t < kTokens; ++t) {
      if (t > 0 && segments[t] == segments[t - 1]) continue;
      double states = 0;
      double to_go = 0;
      for (Eigen::Index s = 0; s < kTokens; ++s) {
        if (in.completions[s] != in.completions[t]) continue;
        if (s == 0 || segments[s] != segments[s - 1]) ++states;
        if (s >= t) to_go += ratios[s];
      }
      const double error = in.values[t] - in.rewards[t] + kBeta * to_go;
      loss += error * error / (4 * states);
      for (Eigen::Index s = t; s < kTokens && segments[s] == segments[t]; ++s) {
        expected[s] = 2 * kBeta * error / (4 * states);
      }
    }
    for (Eigen::Index t = 0; t < kTokens; ++t) {
      check_close(out.grad_logps[t], expected[t], 1e-12, 1e-15);
    }
    const double kl = (kAlpha * in.exact_kls / (in.lens * 4)).sum();
    check_close(out.loss, loss + kl, 1e-12);
    REQUIRE(out.terms.size() == 2);
    check_close(out.terms[0].value, loss, 1e-12);
    check_close(out.terms[1].value, kl, 1e-12);
  }
}

TEST_CASE("losses on tokens: tensors and arrays agree", "[objectives]") {
  const Rows in = random_rows(3);
  const auto tensor = [](const ArrayXd& x) {
    return torch::tensor(std::vector<double>(x.begin(), x.end()), at::kDouble);
  };
  for (const std::string& config : configs()) {
    CAPTURE(config);
    TokenRows rows{.logps = tensor(in.logps).requires_grad_(),
                   .ref_logps = tensor(in.ref_logps),
                   .values = tensor(in.values).requires_grad_(),
                   .log_normalizers = tensor(in.log_normalizers).requires_grad_(),
                   .exact_kls = tensor(in.exact_kls).requires_grad_(),
                   .rewards = tensor(in.rewards),
                   .completions = tensor(in.completions),
                   .steps = tensor(in.steps),
                   .lens = tensor(in.lens),
                   .completion_count = in.completion_count,
                   .step_count = in.step_count,
                   .totals = in.totals};
    const TokenLossOutput out = make_token_loss(config).forward(rows);
    out.loss.backward();
    const auto expected = evaluate(config, in);
    check_close(out.loss.item<double>(), expected.loss, 1e-12);
    const auto check = [&](const at::Tensor& input, const ArrayXd& gradient) {
      if (gradient.size() == 0) {
        CHECK_FALSE(input.grad().defined());
        return;
      }
      for (Eigen::Index t = 0; t < kTokens; ++t) {
        check_close(input.grad()[t].item<double>(), gradient[t], 1e-11, 1e-14);
      }
    };
    check(rows.logps, expected.grad_logps);
    check(rows.values, expected.grad_values);
    check(rows.log_normalizers, expected.grad_log_normalizers);
    check(rows.exact_kls, expected.grad_exact_kls);
  }
}

TEST_CASE("losses on tokens: parts of a step add up to it", "[objectives]") {
  const Rows all = random_rows(4);
  const Rows first = part_of(all, 0, 4, 0, 2);
  const Rows second = part_of(all, 4, 6, 2, 2);
  for (const std::string& config : configs()) {
    CAPTURE(config);
    const auto whole = evaluate(config, all);
    const auto a = evaluate(config, first);
    const auto b = evaluate(config, second);
    check_close(a.loss + b.loss, whole.loss, 1e-12);
    CHECK(((a.grad_logps - whole.grad_logps.head(4)).abs() < 1e-14).all());
    CHECK(((b.grad_logps - whole.grad_logps.tail(6)).abs() < 1e-14).all());
  }
}

TEST_CASE("losses on tokens: where methods coincide", "[objectives]") {
  Rows in = random_rows(5);
  const auto same = [](const auto& a, const auto& b) {
    check_close(a.loss, b.loss, 1e-12);
    CHECK(((a.grad_logps - b.grad_logps).abs() < 1e-14).all());
  };
  // Steps of one token, and of the whole response.
  in.steps = ArrayXd::LinSpaced(kTokens, 0, kTokens - 1);
  in.step_count = kTokens;
  same(evaluate(R"({"type": "oreo", "level": "step"})", in), evaluate(R"({"type": "oreo"})", in));
  in.steps = in.completions;
  in.step_count = in.completion_count;
  same(evaluate(R"({"type": "oreo", "level": "step"})", in),
       evaluate(R"({"type": "oreo", "level": "response"})", in));
  // Without beta and alpha the policy learns nothing, and values are regressed.
  const auto regression = evaluate(R"({"type": "oreo", "beta": 0, "alpha": 0})", in);
  CHECK((regression.grad_logps == 0).all());
  check_close(regression.loss, ((in.values - in.rewards).square() / (4 * in.lens)).sum(), 1e-12);
  // lambda 0: sft; gamma 0: squares of the tokens' own logits.
  check_close(evaluate(R"({"type": "iqlearn", "lambda": 0})", in).loss, -in.logps.mean(), 1e-12);
  const ArrayXd logits = in.logps + in.log_normalizers;
  check_close(evaluate(R"({"type": "iqlearn", "lambda": 0.3, "gamma": 0})", in).loss,
              (0.3 * logits.square() - in.logps).mean(), 1e-12);
  // A shift of the logits of one state changes its own reward, and the one before it by gamma.
  Rows shifted = in;
  shifted.log_normalizers[5] += 0.25;
  const auto rewards = [](const Rows& rows) {
    return ArrayXd(rows.logps + rows.log_normalizers -
                   0.99 * next_values(rows.log_normalizers, rows.completions));
  };
  const ArrayXd change = rewards(shifted) - rewards(in);
  check_close(change[5], 0.25, 1e-12);
  check_close(change[4], -0.99 * 0.25, 1e-12);
  CHECK(change.abs().sum() < 0.5);
}

TEST_CASE("losses on tokens: configs", "[objectives]") {
  for (const std::string& config : configs()) {
    const TokenLoss loss = make_token_loss(config);
    CHECK(make_token_loss(loss.config()).config() == loss.config());
    CHECK(is_token_loss(config));
  }
  CHECK_FALSE(is_token_loss(R"({"type": "dpo"})"));
  CHECK_THROWS_TEXT(make_token_loss(R"({"type": "oreos"})"), ConfigError,
                    "loss: expected a loss on tokens, got 'oreos'; did you mean 'oreo'?");
  CHECK_THROWS_TEXT(make_token_loss(R"({"beta": 1})"), ConfigError,
                    "loss: expected a key 'type' that names a loss on tokens, got {\"beta\":1}");
  CHECK_THROWS_TEXT(make_token_loss(R"({"type": "iqlearn", "lambda": -1})"), ConfigError,
                    "iqlearn: expected lambda >= 0, got -1");
  CHECK_THROWS_TEXT(
      make_token_loss(R"({"type": "oreo", "step_end": "."})"), ConfigError,
      "oreo: expected step_end at its default, got another value that would do nothing; level "
      "'step' alone has steps");
  CHECK_THROWS_TEXT(make_token_loss(R"({"type": "oreo", "level": "step", "step_end": ""})"),
                    ConfigError, "oreo: expected a step_end for level 'step', got ''");
  CHECK_THROWS_TEXT(
      make_token_loss(R"({"type": "iqlearn", "lambda": 0, "own_samples": 0.1})"), ConfigError,
      "iqlearn: expected own_samples at its default, got another value that would do nothing; the "
      "squared rewards have weight 0");
}

TEST_CASE("losses on tokens: arrays that do not fit", "[objectives]") {
  const TokenLoss loss = make_token_loss(R"({"type": "oreo"})");
  const auto refused = [&](const std::function<void(Rows&)>& change, const std::string& text) {
    Rows in = random_rows(6);
    change(in);
    CHECK_THROWS_TEXT(loss.formula<ArrayXd>(in), ShapeError, text);
  };
  refused([](Rows& in) { in.values.resize(0); }, "oreo: expected values [10], got [0]");
  refused([](Rows& in) { in.ref_logps.conservativeResize(9); },
          "oreo: expected ref_logps [10], got [9]");
  refused([](Rows& in) { in.exact_kls.resize(0); }, "oreo: expected exact_kls [10], got [0]");
  refused([](Rows& in) { in.logps.resize(0); }, "oreo: expected tokens, got none");
  refused([](Rows& in) { in.totals.completions = 3; },
          "oreo: expected totals of at least 10 tokens and 4 completions, got 10 and 3");
}

}  // namespace
}  // namespace prefopt
