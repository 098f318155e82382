// SPDX-License-Identifier: Apache-2.0
#include "prefopt/testing/loss_checks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/clamp_max.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/losses/pair_fields.h"
#include "prefopt/losses/registry.h"

namespace prefopt::testing {
namespace {

using Field = PairField<at::Tensor>;
using Rows = std::vector<std::int64_t>;

constexpr auto& kFields = kPairFields<at::Tensor>;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

bool is_logps(const Field& field) { return !field.is_number(); }

at::Tensor zero_where_undefined(const at::Tensor& x, const at::Tensor& like) {
  return x.defined() ? x.detach() : at::zeros_like(like);
}

double item(const at::Tensor& x, std::int64_t i) { return x[i].item<double>(); }

std::string number(double x) { return fmt::format("{:.6g}", x + 0.0); }  // no -0

// Returns the first place where a and b differ by more than `relative` of the largest of b, or -1.
std::int64_t first_difference(const at::Tensor& a, const at::Tensor& b, double relative,
                              double absolute = 0) {
  const double allowed = relative * b.detach().abs().max().item<double>() + absolute;
  for (std::int64_t i = 0; i < b.numel(); ++i) {
    if (!(std::abs(item(a, i) - item(b, i)) <= allowed)) return i;
  }
  return -1;
}

PairLogps take_rows(const PairLogps& in, const Rows& rows) {
  PairLogps out = in;
  const std::int64_t group = in.samples_per_prompt;
  const at::Tensor places = at::tensor(rows, at::kLong);
  const at::Tensor samples = (places.unsqueeze(1) * group + at::arange(group, at::kLong)).flatten();
  for (const Field& field : kFields) {
    const at::Tensor& x = in.*field.value;
    if (x.defined()) out.*field.value = x.index_select(0, field.per_sample() ? samples : places);
  }
  return out;
}

PairLogps to_dtype(PairLogps in, at::ScalarType dtype) {
  for (const Field& field : kFields) {
    at::Tensor& x = in.*field.value;
    if (x.defined() && is_logps(field)) x = x.to(dtype);
  }
  if (in.running.mean.defined()) in.running.mean = in.running.mean.to(dtype);
  return in;
}

StepTotals totals_of(const PairLogps& in) {
  const auto sum = [](const at::Tensor& lens) {
    return lens.defined() ? lens.sum().item<double>() : 0.0;
  };
  return {.pairs = static_cast<double>(in.chosen_logps.size(0)),
          .chosen_tokens = sum(in.chosen_lens),
          .rejected_tokens = sum(in.rejected_lens),
          .gold_tokens = sum(in.gold_lens),
          .prompt_tokens = sum(in.prompt_lens)};
}

// Everything that a loss may be given on rows of five-token completions whose reference has the
// log-prob `ref` and whose policy is chosen and rejected log-ratios above it.
PairLogps even_rows(const LossRequirements& needs, const at::Tensor& chosen_logratios,
                    const at::Tensor& rejected_logratios, double ref) {
  const std::int64_t batch = chosen_logratios.size(0);
  PairLogps in = random_pair_logps(needs, batch, 0);
  const auto set = [](at::Tensor& x, const at::Tensor& value) {
    if (x.defined()) x = value.expand_as(x).to(x.scalar_type()).contiguous();
  };
  const at::Tensor reference = at::full({1}, ref, at::kDouble);
  const at::Tensor one = at::full({1}, 1.0, at::kDouble);
  set(in.chosen_logps, ref + chosen_logratios);
  set(in.rejected_logps, ref + rejected_logratios);
  for (const auto& [head, full] : {std::pair{&in.chosen_overlap_logps, &in.chosen_logps},
                                   {&in.rejected_overlap_logps, &in.rejected_logps},
                                   {&in.chosen_log_sum_p_squared, &in.chosen_logps},
                                   {&in.rejected_log_sum_p_squared, &in.rejected_logps}}) {
    if (head->defined()) *head = full->clone();
  }
  for (at::Tensor* x : {&in.ref_chosen_logps, &in.ref_rejected_logps, &in.ref_chosen_overlap_logps,
                        &in.ref_rejected_overlap_logps, &in.gold_logps, &in.prompt_logps,
                        &in.kl_logps, &in.ref_kl_logps, &in.sample_logps, &in.ref_sample_logps}) {
    set(*x, reference);
  }
  set(in.chosen_limited_logratios, chosen_logratios);
  set(in.rejected_limited_logratios, rejected_logratios);
  set(in.kl_limited_logratios, 0 * one);
  if (in.chosen_confident_logps.defined()) {
    // Five tokens of the same probability, which is at most 1.
    const at::Tensor each = at::clamp_max(in.chosen_logps / 5, 0);
    in.chosen_confident_logps = in.chosen_logps * at::exp(each);
  }
  for (at::Tensor* x :
       {&in.chosen_lens, &in.rejected_lens, &in.gold_lens, &in.prompt_lens, &in.sample_lens}) {
    set(*x, 5 * one);
  }
  for (at::Tensor* x : {&in.labels, &in.weights, &in.label_probs}) set(*x, one);
  for (at::Tensor* x :
       {&in.margins, &in.chosen_seq_kl, &in.rejected_seq_kl, &in.advantages, &in.groups}) {
    set(*x, 0 * one);
  }
  set(in.from_reference, 2 * one);
  in.running = {};
  return in;
}

class LossChecker {
 public:
  LossChecker(const Loss& loss, const LossCheckOptions& options)
      : loss_(loss), options_(options), needs_(loss.requirements()), name_(loss.info().name) {}

  LossReport run() {
    guarded("difference", &LossChecker::check_differences);
    guarded("autograd", &LossChecker::check_autograd);
    guarded("undeclared", &LossChecker::check_undeclared);
    guarded("finite", &LossChecker::check_finite);
    guarded("float32", &LossChecker::check_float32);
    guarded("mean", &LossChecker::check_mean);
    guarded("permutation", &LossChecker::check_permutation);
    guarded("cut", needs_.whole_step ? &LossChecker::check_part_refused : &LossChecker::check_cuts);
    guarded("misuse", &LossChecker::check_misuse);
    if (options_.anchors) guarded("anchor", &LossChecker::check_anchors);
    guarded("requirements", &LossChecker::check_requirements);
    guarded("config", &LossChecker::check_config);
    guarded("property", &LossChecker::check_properties);
    return std::move(report_);
  }

 private:
  void fail(const char* check, const std::string& what, const std::string& expected,
            const std::string& got) {
    report_.failures.push_back(
        {check, fmt::format("{}: expected {}, got {} (loss '{}', batch of {}, seed {})", what,
                            expected, got, name_, options_.batch, options_.seed)});
  }

  void guarded(const char* check, void (LossChecker::*run)()) {
    try {
      (this->*run)();
    } catch (const std::exception& error) {
      fail(check, fmt::format("check '{}'", check), "no exception", error.what());
    }
  }

  PairLogps random(double spread = 3) const {
    return random_pair_logps(needs_, options_.batch, options_.seed, spread);
  }

  void check_requirements() {
    if (needs_.running_mean && !needs_.whole_step) {
      fail("requirements", "whole_step of a loss with running_mean", "true", "false");
    }
  }

  bool has_differences(const Field& field) const {
    return field.gradient != nullptr && field.needed(needs_) &&
           std::count(options_.no_difference.begin(), options_.no_difference.end(), field.name) ==
               0;
  }

  // Next to the reference, where most losses bend, and beyond the limits of exponentials in
  // float32.
  void check_differences() {
    for (const Field& field : kFields) {
      if (!has_differences(field)) continue;
      for (const double spread : {1e-3, 1.0, 5.0, 40.0}) {
        if (!check_differences_of(field, random(spread))) break;
      }
    }
  }

  bool check_differences_of(const Field& field, const PairLogps& in) {
    const at::Tensor& x = in.*field.value;
    const at::Tensor gradient = zero_where_undefined(loss_(in).*field.gradient, x);
    for (std::int64_t i = 0; i < x.numel(); ++i) {
      const Slope slope = slope_at(field, in, i);
      const double got = item(gradient, i);
      if (slope.low <= got && got <= slope.high) continue;
      fail("difference", fmt::format("gradient of {} at row {}", field.name, i),
           number(slope.central) + " by finite differences", number(got));
      return false;
    }
    return true;
  }

  struct Slope {
    double central;
    double low, high;  // all that may be called a derivative
  };

  Slope slope_at(const Field& field, const PairLogps& in, std::int64_t i) const {
    constexpr double kStep = 1e-5;
    const double x = item(in.*field.value, i);
    const double up = x + kStep, down = x - kStep;
    const at::Tensor middle = values(in, in);
    const at::Tensor above = values(moved(field, in, i, up), in);
    const at::Tensor below = values(moved(field, in, i, down), in);
    const double right = (above - middle).sum().item<double>() / (up - x);
    const double left = (middle - below).sum().item<double>() / (x - down);
    const double central = (above - below).sum().item<double>() / (up - down);
    // Of the summands that moved, and of the row's own, in which the step may have rounded away.
    at::Tensor seen = above.ne(below);
    const std::int64_t row = field.per_sample() ? i / in.samples_per_prompt : i;
    seen[std::min(row, seen.size(0) - 1)] = true;
    const double largest = (middle.abs() * seen.to(at::kDouble)).max().item<double>();
    const double rounding = 64 * std::numeric_limits<double>::epsilon() * (1 + largest) / kStep;
    const double allowed = options_.tolerance * std::abs(central) + rounding;
    return {central, std::min({left, right, central}) - allowed,
            std::max({left, right, central}) + allowed};
  }

  // Summands of the value: the rows apart, so that one of them does not drown in the rounding of
  // the others.
  at::Tensor values(const PairLogps& at, const PairLogps& frozen) const {
    if (options_.surrogate) return at::full({1}, options_.surrogate(at, frozen), at::kDouble);
    return loss_(at).losses / static_cast<double>(options_.batch);
  }

  static PairLogps moved(const Field& field, const PairLogps& in, std::int64_t i, double x) {
    PairLogps out = in;
    at::Tensor changed = (in.*field.value).clone();
    changed[i] = x;
    out.*field.value = changed;
    return out;
  }

  void check_autograd() {
    PairLogps in = random();
    for (const Field& field : kFields) {
      at::Tensor& x = in.*field.value;
      if (x.defined() && x.is_floating_point()) x = x.clone().requires_grad_();
    }
    const LossOutput out = loss_(in);
    if (!out.loss.requires_grad()) {
      fail("autograd", "loss", "a gradient function", "none");
      return;
    }
    const double outer = 0.5 + std::fmod(0.618033988749895 * static_cast<double>(options_.seed), 1);
    (outer * out.loss).backward();
    for (const Field& field : kFields) {
      const at::Tensor& x = in.*field.value;
      if (!x.defined() || !x.is_floating_point()) continue;
      const at::Tensor got = zero_where_undefined(x.grad(), x);
      const at::Tensor expected = field.gradient != nullptr
                                      ? outer * zero_where_undefined(out.*field.gradient, x)
                                      : at::zeros_like(got);
      const std::int64_t i = first_difference(got, expected, 1e-10);
      if (i < 0) continue;
      const std::string what = fmt::format("autograd's gradient of {} at row {}", field.name, i);
      if (field.gradient != nullptr) {
        fail("autograd", what, number(item(expected, i)) + " as grad_* says", number(item(got, i)));
      } else {
        fail("reference", what, "none", number(item(got, i)));
      }
    }
    for (const auto& [what, x] : {std::pair{"losses", &out.losses},
                                  {"chosen_rewards", &out.chosen_rewards},
                                  {"rejected_rewards", &out.rejected_rewards},
                                  {"margins", &out.margins}}) {
      if (x->defined() && x->requires_grad()) fail("reference", what, "no graph", "one");
    }
  }

  // NaN is never equal to anything, so that any use of it shows.
  void check_undeclared() {
    const PairLogps declared = random();
    PairLogps all = declared;
    if (all.samples_per_prompt == 0) all.samples_per_prompt = 2;
    for (const Field& field : kFields) {
      if (field.needed(needs_)) continue;
      const std::int64_t rows =
          field.per_sample() ? options_.batch * all.samples_per_prompt : options_.batch;
      all.*field.value = at::full({rows}, kNan, at::kDouble);
    }
    if (!needs_.running_mean) all.running = {at::scalar_tensor(kNan, at::kDouble), 5};
    compare("undeclared", "with NaN in the inputs that are not declared", loss_(all),
            loss_(declared), 0);
  }

  // Loss, losses and gradients of `got` against `expected`.
  void compare(const char* check, const std::string& when, const LossOutput& got,
               const LossOutput& expected, double relative, double absolute = 0) {
    const auto one = [&](const std::string& what, at::Tensor a, at::Tensor b) {
      if (a.defined() != b.defined()) {
        fail(check, fmt::format("{} {}", what, when), b.defined() ? "a tensor" : "no tensor",
             a.defined() ? "one" : "none");
      }
      if (!a.defined() || !b.defined()) return;
      a = a.detach().to(at::kDouble).reshape(-1);
      b = b.detach().to(at::kDouble).reshape(-1);
      const std::int64_t i = first_difference(a, b, relative, absolute);
      if (i < 0) return;
      const std::string where = b.numel() > 1 ? fmt::format(" at row {}", i) : "";
      fail(check, fmt::format("{}{} {}", what, where, when), number(item(b, i)),
           number(item(a, i)));
    };
    one("loss", got.loss, expected.loss);
    one("losses", got.losses, expected.losses);
    for (const Field& field : kFields) {
      if (field.gradient == nullptr) continue;
      one(fmt::format("gradient of {}", field.name), got.*field.gradient, expected.*field.gradient);
    }
  }

  void check_finite() {
    std::vector<double> chosen, rejected;
    for (const double w : {0.0, 1e-30, 1.0, 29.9, 30.1, 88.0, 89.0, 300.5, 710.0, 1e4}) {
      for (const double l : {0.0, 1e-30, 1.0, 29.9, 30.1, 88.0, 89.0, 300.5, 710.0, 1e4}) {
        for (const double sign : {1.0, -1.0}) {
          chosen.insert(chosen.end(), {sign * w, sign * w});
          rejected.insert(rejected.end(), {l, -l});
        }
      }
    }
    PairLogps in =
        even_rows(needs_, at::tensor(chosen, at::kDouble), at::tensor(rejected, at::kDouble), 0);
    spread_to_all_inputs(in);
    const auto rows = static_cast<std::int64_t>(chosen.size());
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
      const PairLogps given = to_dtype(in, dtype);
      if (!check_finite_at(given, "rows of all kinds", dtype)) continue;
      // Rows that are their own step, where the others do not even out their means.
      for (std::int64_t i = 0; needs_.whole_step && i < rows; ++i) {
        const std::string where = fmt::format("log-ratios {} and {}", chosen[i], rejected[i]);
        if (!check_finite_at(take_rows(given, {i}), where, dtype)) break;
      }
    }
  }

  // Samples and completions of other rows are as far off as the chosen one, sequence KLs too.
  static void spread_to_all_inputs(PairLogps& in) {
    for (at::Tensor* x : {&in.gold_logps, &in.prompt_logps, &in.kl_logps}) {
      if (x->defined()) *x = in.chosen_logps.clone();
    }
    for (at::Tensor* x : {&in.chosen_seq_kl, &in.rejected_seq_kl}) {
      if (x->defined()) *x = in.chosen_logps.abs();
    }
    if (in.kl_limited_logratios.defined()) in.kl_limited_logratios = in.chosen_logps.clone();
    if (in.sample_logps.defined()) {
      in.sample_logps = in.chosen_logps.repeat_interleave(in.samples_per_prompt);
    }
  }

  bool check_finite_at(const PairLogps& in, const std::string& where, at::ScalarType dtype) {
    const LossOutput out = loss_(in);
    std::vector<std::pair<std::string, at::Tensor>> all{
        {"losses", out.losses}, {"loss", out.loss}, {"margins", out.margins}};
    for (const Field& field : kFields) {
      if (field.gradient == nullptr) continue;
      all.emplace_back(fmt::format("gradient of {}", field.name), out.*field.gradient);
    }
    for (const auto& [what, x] : all) {
      if (!x.defined() || x.isfinite().all().item<bool>()) continue;
      const at::Tensor bad = x.detach().reshape(-1).to(at::kDouble);
      std::int64_t i = 0;
      while (std::isfinite(item(bad, i))) ++i;
      const std::string at_row =
          bad.numel() == in.chosen_logps.size(0) && in.rejected_logps.defined()
              ? fmt::format("log-ratios {} and {}", item(in.chosen_logps, i),
                            item(in.rejected_logps, i))
              : where;
      fail("finite", fmt::format("{} in {} at {}", what, at::toString(dtype), at_row),
           "a finite number", number(item(bad, i)));
      return false;
    }
    return true;
  }

  void check_float32() {
    const PairLogps single = to_dtype(random(), at::kFloat);
    const LossOutput got = loss_(single);
    if (got.loss.scalar_type() != at::kFloat) {
      fail("float32", "loss of float32 log-probs", "dtype Float",
           at::toString(got.loss.scalar_type()));
    }
    compare("float32", "in float32", got, loss_(to_dtype(single, at::kDouble)), 1e-4, 1e-7);
  }

  void check_mean() {
    const LossOutput out = loss_(random());
    const double loss = out.loss.item<double>();
    const auto same = [&](const char* what, double got) {
      if (std::abs(got - loss) > 1e-12 * (1 + std::abs(loss))) {
        fail("mean", what, number(loss) + " as the loss", number(got));
      }
    };
    same("mean of losses", out.losses.mean().item<double>());
    double sum = 0;
    for (const LossTerm& term : out.terms) sum += term.value.item<double>();
    if (!out.terms.empty()) same("sum of terms", sum);
  }

  void check_permutation() {
    const PairLogps in = random();
    Rows order, samples;
    for (std::int64_t i = 0; i < options_.batch; ++i) order.push_back((i + 1) % options_.batch);
    for (const std::int64_t row : order) {
      for (std::int64_t k = 0; k < in.samples_per_prompt; ++k) {
        samples.push_back(row * in.samples_per_prompt + k);
      }
    }
    LossOutput expected = loss_(in);
    const auto permute = [](at::Tensor& x, const Rows& places) {
      if (x.defined()) x = x.index_select(0, at::tensor(places, at::kLong));
    };
    permute(expected.losses, order);
    for (const Field& field : kFields) {
      if (field.gradient) permute(expected.*field.gradient, field.per_sample() ? samples : order);
    }
    compare("permutation", "of permuted rows", loss_(take_rows(in, order)), expected, 1e-12);
  }

  PairLogps whole_step() const {
    PairLogps in = random();
    in.totals = totals_of(in);
    return in;
  }

  void check_part_refused() {
    const PairLogps in = whole_step();
    Rows part;
    for (std::int64_t i = 0; i + 1 < options_.batch; ++i) part.push_back(i);
    try {
      (void)loss_(take_rows(in, part));
    } catch (const ShapeError&) {
      return;
    }
    fail("cut",
         fmt::format("{} of {} rows of a loss that declares whole_step", part.size(),
                     options_.batch),
         "a ShapeError", "none");
  }

  // Whole against one row at a time, and against the first row and the rest.
  void check_cuts() {
    const PairLogps in = whole_step();
    const LossOutput whole = loss_(in);
    std::vector<Rows> singles, two(2);
    for (std::int64_t i = 0; i < options_.batch; ++i) {
      singles.push_back({i});
      two[i == 0 ? 0 : 1].push_back(i);
    }
    compare("cut", "of a step in parts of one row", sum_of_parts(in, singles), whole, 1e-10);
    compare("cut", "of a step in two parts", sum_of_parts(in, two), whole, 1e-10);
  }

  LossOutput sum_of_parts(const PairLogps& in, const std::vector<Rows>& parts) const {
    std::vector<LossOutput> outs;
    for (const Rows& rows : parts) outs.push_back(loss_(take_rows(in, rows)));
    const auto joined = [&](at::Tensor LossOutput::*member) {
      std::vector<at::Tensor> tensors;
      for (const LossOutput& out : outs) {
        if ((out.*member).defined()) tensors.push_back(out.*member);
      }
      return tensors.size() == outs.size() ? at::cat(tensors) : at::Tensor();
    };
    LossOutput sum;
    sum.loss = at::scalar_tensor(0, at::kDouble);
    for (const LossOutput& out : outs) sum.loss = sum.loss + out.loss.detach();
    sum.losses = joined(&LossOutput::losses);
    for (const Field& field : kFields) {
      if (field.gradient) sum.*field.gradient = joined(field.gradient);
    }
    return sum;
  }

  void check_misuse() {
    const PairLogps good = random();
    for (const Field& field : kFields) {
      if (!field.needed(needs_)) continue;
      const at::Tensor& x = good.*field.value;
      PairLogps bad = good;
      bad.*field.value = at::Tensor();
      expect_error(bad, fmt::format("no {}", field.name));
      if (field.name == "chosen_logps") continue;  // the others are compared to it
      bad.*field.value = x.slice(0, 0, x.size(0) - 1);
      expect_error(bad, fmt::format("{} of {} values", field.name, x.size(0) - 1));
    }
  }

  void expect_error(const PairLogps& bad, const std::string& what) {
    std::string got = "none";
    try {
      (void)loss_(bad);
    } catch (const Error&) {
      return;
    } catch (const std::exception& error) {
      got = error.what();
      got = fmt::format("another exception: {}", got.substr(0, got.find('\n')));
    }
    fail("misuse", what, "an error of prefopt", got);
  }

  void check_anchors() {
    for (const LossAnchor& anchor : loss_.info().anchors) {
      const auto one = [](double x) { return at::full({1}, x, at::kDouble); };
      const PairLogps in =
          even_rows(needs_, one(anchor.chosen_logratio), one(anchor.rejected_logratio), -10);
      const double got = loss_(in).loss.item<double>();
      if (std::abs(got - anchor.loss) <= 1e-13 * (1 + std::abs(anchor.loss))) continue;
      fail("anchor",
           fmt::format("anchor at log-ratios {} and {}", anchor.chosen_logratio,
                       anchor.rejected_logratio),
           number(anchor.loss), number(got));
    }
  }

  void check_config() {
    const std::vector<std::string> names = registered_losses();
    if (std::count(names.begin(), names.end(), name_) == 0) return;
    const Loss again = make_loss(loss_.config());
    if (again.config() != loss_.config()) {
      fail("config", "config() of the loss made of it", loss_.config(), again.config());
    }
    const PairLogps in = random();
    compare("config", "of the loss made of config()", again(in), loss_(in), 0);
  }

  void check_properties() {
    const LossProperties& declared = options_.properties;
    const PairLogps in = random();
    const LossOutput out = loss_(in);
    if (declared.log_ratios_only) {
      PairLogps shifted = in;
      for (at::Tensor* x : {&shifted.chosen_logps, &shifted.ref_chosen_logps,
                            &shifted.chosen_overlap_logps, &shifted.ref_chosen_overlap_logps}) {
        if (x->defined()) *x = *x - 1.5;
      }
      for (at::Tensor* x : {&shifted.rejected_logps, &shifted.ref_rejected_logps,
                            &shifted.rejected_overlap_logps, &shifted.ref_rejected_overlap_logps}) {
        if (x->defined()) *x = *x - 0.5;
      }
      compare("property", "with a constant on policy and reference", loss_(shifted), out, 1e-10);
    }
    if (declared.difference_only) {
      PairLogps shifted = in;
      for (at::Tensor* x : {&shifted.chosen_logps, &shifted.rejected_logps,
                            &shifted.chosen_overlap_logps, &shifted.rejected_overlap_logps}) {
        if (x->defined()) *x = *x - 1.5;
      }
      compare("property", "with a constant on both completions", loss_(shifted), out, 1e-10);
    }
    if (declared.non_negative) expect_sign("losses", out.losses, 1);
    if (declared.monotone) {
      expect_sign("gradient of chosen_logps", out.grad_chosen, -1);
      expect_sign("gradient of rejected_logps", out.grad_rejected, 1);
    }
  }

  void expect_sign(const char* what, const at::Tensor& x, double sign) {
    if (!x.defined()) return;
    for (std::int64_t i = 0; i < x.numel(); ++i) {
      if (sign * item(x, i) >= 0) continue;
      fail("property", fmt::format("{} at row {}", what, i), sign > 0 ? ">= 0" : "<= 0",
           number(item(x, i)));
      return;
    }
  }

  const Loss& loss_;
  const LossCheckOptions& options_;
  LossRequirements needs_;
  std::string name_;
  LossReport report_;
};

}  // namespace

std::string LossReport::text() const {
  std::string all;
  for (const Failure& failure : failures) all += failure.text + '\n';
  if (!all.empty()) all.pop_back();
  return all;
}

LossReport check_loss(const Loss& loss, const LossCheckOptions& options) {
  if (options.batch < 2) {
    throw ConfigError(
        fmt::format("check_loss: expected a batch of at least 2 rows, got {}", options.batch));
  }
  return LossChecker(loss, options).run();
}

}  // namespace prefopt::testing
