// SPDX-License-Identifier: Apache-2.0

// The cost of a loss itself, from the log-probs and back to them: every registered one, next to the
// output head of the smallest step that there is, completions of one token. A real step is longer
// by the model's layers, the reference and all further tokens.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/logps/token_logps.h"
#include "prefopt/losses/pair_fields.h"
#include "prefopt/losses/registry.h"
#include "prefopt/testing/loss_checks.h"
#include "support/inputs.h"
#include "support/report.h"

namespace prefopt::bench {
namespace {

constexpr const char* kHead = "limit: head of one token a completion";

struct Shape {
  std::int64_t pairs, vocab;
  std::int64_t hidden = 576;
};

/// Random log-probs in float32, as a float32 model gives them; those that a loss differentiates ask
/// for their gradient.
PairLogps inputs_of(const Loss& loss, std::int64_t pairs) {
  PairLogps logps = testing::random_pair_logps(loss.requirements(), pairs, 1);
  for (const auto& field : kPairFields<at::Tensor>) {
    at::Tensor& value = logps.*field.value;
    if (!value.defined() || !value.is_floating_point()) continue;
    value = value.to(at::kFloat);
    if (field.gradient != nullptr) value.requires_grad_();
  }
  return logps;
}

/// Value and gradient of `loss`.
void step(const Loss& loss, PairLogps& logps) {
  loss.forward(logps).loss.backward();
  for (const auto& field : kPairFields<at::Tensor>) {
    at::Tensor& value = logps.*field.value;
    if (value.defined()) value.mutable_grad() = at::Tensor();
  }
}

/// The head of both completions of each pair, forward and backward.
struct Head {
  explicit Head(const Shape& shape)
      : hidden(random_normal({2 * shape.pairs, shape.hidden}, 1, at::kFloat, 1).requires_grad_()),
        weight(random_normal({shape.vocab, shape.hidden}, 0.02, at::kFloat, 2).requires_grad_()),
        targets(random_targets(2 * shape.pairs, shape.vocab, 3)) {}

  void run() const {
    linear_token_logps(hidden, weight, targets).logps.sum().backward();
    hidden.mutable_grad() = at::Tensor();
    weight.mutable_grad() = at::Tensor();
  }

  at::Tensor hidden, weight, targets;
};

void run(Report& report, const Options& options, const Shape& shape) {
  std::vector<Loss> losses;
  for (const std::string& name : registered_losses()) {
    losses.push_back(make_loss(fmt::format(R"({{"type": "{}"}})", name)));
  }
  std::vector<PairLogps> inputs;
  for (const Loss& loss : losses) inputs.push_back(inputs_of(loss, shape.pairs));
  const Head head(shape);

  std::vector<Contender> contenders = {{.name = kHead, .run = [&] { head.run(); }}};
  for (std::size_t i = 0; i < losses.size(); ++i) {
    contenders.push_back(
        {.name = losses[i].info().name, .run = [&, i] { step(losses[i], inputs[i]); }});
  }
  const Task task{.part = "losses",
                  .title = "a loss and its gradient, from log-probs to log-probs",
                  .dtype = "float32",
                  .rows = shape.pairs,
                  .vocab = shape.vocab,
                  .hidden = shape.hidden,
                  .unit = {},
                  .base = kHead};
  const Table table = report.measure(task, std::move(contenders));
  for (const Loss& loss : losses) {
    const std::string name = loss.info().name;
    if (!options.selects(name)) continue;
    const auto share = quotient(table.ms(name), table.ms(kHead));
    report.judge(task, "loss", name + ": % of the head's time",
                 share ? std::optional(100 * *share) : std::nullopt, Bound::kAtMost, 1);
  }
}

}  // namespace
}  // namespace prefopt::bench

int main(int argc, char** argv) {
  using namespace prefopt::bench;
  CLI::App app("Times every registered loss next to the output head of the smallest step");
  Options options;
  options.rows = {4096};  // pairs
  options.vocab = {49152};
  options.add_to(app);
  return bench_main("bench_losses", app, options, argc, argv, [&](Report& report) {
    for (const std::int64_t vocab : options.vocab) {
      for (const std::int64_t pairs : options.rows) run(report, options, {pairs, vocab});
    }
  });
}
