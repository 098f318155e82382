// SPDX-License-Identifier: Apache-2.0

// From logits to log-probs (targets K1 and K2): prefopt against what TRL and PyTorch do, and
// against one read and one copy of the logits.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/logps/token_logps.h"
#include "support/eager.h"
#include "support/inputs.h"
#include "support/oracle.h"
#include "support/report.h"

namespace prefopt::bench {
namespace {

constexpr const char* kForward = "prefopt forward";
constexpr const char* kInPlace = "prefopt in place";
constexpr const char* kFresh = "prefopt fresh memory";
constexpr const char* kLogSoftmax = "log_softmax + gather";
constexpr const char* kTrlOne = "trl selective_log_softmax, same ATen calls, 1 sequence";
constexpr const char* kTrlEight = "trl selective_log_softmax, same ATen calls, 8 sequences";
constexpr const char* kReadSum = "limit: one read (sum)";
constexpr const char* kReadMax = "limit: one read (amax)";
constexpr const char* kCopy = "limit: one copy";

using Function = std::function<at::Tensor(const at::Tensor& logits)>;

struct Peer {
  const char* name;
  Function logps;
};

std::vector<Peer> peers(const at::Tensor& targets) {
  std::vector<Peer> all = {
      {kTrlOne,
       [=](const at::Tensor& x) { return eager::trl_selective_log_softmax(x, targets, 1); }},
      {kLogSoftmax, [=](const at::Tensor& x) { return eager::log_softmax_gather(x, targets); }},
      {"gather - logsumexp",
       [=](const at::Tensor& x) { return eager::gather_logsumexp(x, targets); }},
      {"cross_entropy", [=](const at::Tensor& x) { return eager::cross_entropy(x, targets); }}};
  if (targets.size(0) % 8 == 0) {
    // TRL sees as many sequences as a batch has; the temporaries of each are smaller then.
    all.insert(all.begin() + 1, {kTrlEight, [=](const at::Tensor& x) {
                                   return eager::trl_selective_log_softmax(x, targets, 8);
                                 }});
  }
  return all;
}

/// Logits that all contenders work on, as a leaf, and what they were before one overwrote them.
struct Inputs {
  Inputs(std::int64_t rows, std::int64_t vocab, at::ScalarType dtype)
      : pristine(random_normal({rows, vocab}, 3, dtype, 1)),
        logits(pristine.clone().requires_grad_()),
        targets(random_targets(rows, vocab, 2)),
        c(random_normal({rows}, 1, at::kFloat, 3)) {}

  void restore() const { logits.detach().copy_(pristine); }

  at::Tensor gradient(const at::Tensor& logps) const {
    return torch::autograd::grad({logps}, {logits}, {c.to(logps.scalar_type())})[0];
  }

  at::Tensor pristine, logits, targets, c;
};

at::Tensor prefopt_logps(const Inputs& in, bool overwrite) {
  TokenLogpsOptions options;
  options.overwrite_logits = overwrite;
  // A leaf may not be overwritten; a view of it is what a model's output is, computed.
  const at::Tensor logits = overwrite ? in.logits.view(in.logits.sizes()) : in.logits;
  return token_logps(logits, in.targets, options).logps;
}

void check(Report& report, const Inputs& in) {
  // A gradient in bfloat16 is rounded to eight bits.
  const double tolerance = in.logits.scalar_type() == at::kBFloat16 ? 4e-3 : 1e-5;
  for (const bool overwrite : {false, true}) {
    in.restore();
    const at::Tensor logps = prefopt_logps(in, overwrite);
    const at::Tensor kept = logps.detach().clone();
    const at::Tensor gradient = in.gradient(logps);
    const LogitsErrors errors = logits_errors(in.pristine, in.targets, in.c, kept, gradient);
    const char* name = overwrite ? kInPlace : kFresh;
    report.check(fmt::format("{}, log-probs", name), errors.logps, 1e-6);
    report.check(fmt::format("{}, gradient", name), errors.gradient, tolerance);
  }
  in.restore();
}

void forward(Report& report, const Inputs& in, Task task) {
  task.part = "k1";
  task.title = "logits to log-probs, forward; GB/s: one read of the logits";
  task.base = kForward;
  const auto work = static_cast<double>(in.pristine.nbytes());
  std::vector<Contender> contenders;
  const auto add = [&](const char* name, std::function<void()> run) {
    contenders.push_back({.name = name,
                          .run =
                              [run = std::move(run)] {
                                const at::NoGradGuard no_grad;
                                run();
                              },
                          .work = work});
  };
  add(kForward, [&] { prefopt_logps(in, false); });
  for (const Peer& peer : peers(in.targets)) {
    add(peer.name, [&in, logps = peer.logps] { logps(in.logits); });
  }
  add(kReadSum, [&] { at::sum(in.logits); });
  add(kReadMax, [&] { at::amax(in.logits, -1); });

  const Table table = report.measure(task, contenders, [&] { in.restore(); });
  const auto ours = table.ms(kForward);
  const auto judge = [&](const char* measure, std::optional<double> value, double limit) {
    report.judge(task, "K1", measure, value, Bound::kAtLeast, limit);
  };
  judge("times the speed of TRL, 1 sequence", quotient(table.ms(kTrlOne), ours), 10);
  judge("times the speed of TRL, 8 sequences", quotient(table.ms(kTrlEight), ours), 10);
  judge("times the speed of log_softmax + gather", quotient(table.ms(kLogSoftmax), ours), 6);
  judge("of the bandwidth of one read", quotient(table.fastest_ms({kReadSum, kReadMax}), ours),
        0.6);
}

void forward_backward(Report& report, const Inputs& in, Task task) {
  task.part = "k2";
  task.title = "logits to log-probs, forward + backward; GB/s: one read and one write";
  task.base = kInPlace;
  const std::int64_t bytes = bytes_of(in.pristine);
  const auto work = 2 * static_cast<double>(bytes);
  const at::Tensor target = at::empty_like(in.pristine);
  target.copy_(in.pristine);  // its pages exist before the copy is timed
  std::vector<Contender> contenders;
  const auto add = [&](const char* name, std::function<void()> run, std::int64_t result_bytes) {
    contenders.push_back(
        {.name = name, .run = std::move(run), .work = work, .result_bytes = result_bytes});
  };
  add(
      kInPlace, [&] { in.gradient(prefopt_logps(in, true)); }, 0);
  add(
      kFresh, [&] { in.gradient(prefopt_logps(in, false)); }, bytes);
  for (const Peer& peer : peers(in.targets)) {
    add(
        peer.name, [&in, logps = peer.logps] { in.gradient(logps(in.logits)); }, bytes);
  }
  add(
      kCopy,
      [&] {
        const at::NoGradGuard no_grad;
        target.copy_(in.logits);
      },
      0);

  const Table table = report.measure(task, contenders, [&] { in.restore(); });
  const auto ours = table.ms(kInPlace);
  const auto judge = [&](const char* measure, std::optional<double> value, Bound bound,
                         double limit) { report.judge(task, "K2", measure, value, bound, limit); };
  judge("times the speed of TRL, 1 sequence", quotient(table.ms(kTrlOne), ours), Bound::kAtLeast,
        12);
  judge("times the speed of TRL, 8 sequences", quotient(table.ms(kTrlEight), ours), Bound::kAtLeast,
        12);
  judge("times the speed of log_softmax + gather", quotient(table.ms(kLogSoftmax), ours),
        Bound::kAtLeast, 6);
  judge("times the time of one copy", quotient(ours, table.ms(kCopy)), Bound::kAtMost, 2);
  const Row* row = table.find(kInPlace);
  // Below this a hundredth is less than the kernel's counters resolve.
  if (row != nullptr && row->peak_bytes && bytes >= std::int64_t{64} << 20) {
    judge("% of the logits as extra memory",
          100 * static_cast<double>(*row->peak_bytes) / static_cast<double>(bytes), Bound::kAtMost,
          1);
  }
}

void run(Report& report, const Options& options, const std::string& dtype) {
  report.note("The logits are restored before each run, outside of the time.");
  for (const std::int64_t vocab : options.vocab) {
    for (const std::int64_t rows : options.rows) {
      const Inputs in(rows, vocab, dtype_named(dtype));
      if (options.check) check(report, in);
      const Task task{.part = {},
                      .title = {},
                      .dtype = dtype,
                      .rows = rows,
                      .vocab = vocab,
                      .unit = "GB/s",
                      .base = {}};
      forward(report, in, task);
      forward_backward(report, in, task);
    }
  }
}

}  // namespace
}  // namespace prefopt::bench

int main(int argc, char** argv) {
  using namespace prefopt::bench;
  CLI::App app("Times logits to log-probs: prefopt, its peers, and one read and one copy");
  Options options;
  options.rows = {1, 64, 384, 2048};
  options.vocab = {49152, 151936};
  options.add_to(app);
  std::string dtype = "float32";
  app.add_option("--dtype", dtype, "Of the logits: float32 or bfloat16")
      ->check(CLI::IsMember({"float32", "bfloat16"}))
      ->capture_default_str();
  return bench_main("bench_token_logps", app, options, argc, argv,
                    [&](Report& report) { run(report, options, dtype); });
}
