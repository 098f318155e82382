// SPDX-License-Identifier: Apache-2.0

// A loss of the user's own: written, registered, checked by the kit, trained with.
#include <prefopt/decoder/decoder.h>
#include <prefopt/losses/pairwise_loss.h>
#include <prefopt/losses/registry.h>
#include <prefopt/policy/reference.h>
#include <prefopt/testing/loss_checks.h>
#include <prefopt/train/trainer.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

using namespace prefopt;

struct SquaredHingeLink {  // max(0, 1 - beta delta)^2
  double beta;

  template <class T>
  T value(const T& delta) const {
    return math::square(math::relu(T(1 - beta * delta)));
  }
  template <class T>
  T derivative(const T& delta) const {
    return -2 * beta * math::relu(T(1 - beta * delta));
  }
};

class SquaredHingeLoss : public PairwiseLoss<SquaredHingeLoss, BetaOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;
  SquaredHingeLink link() const { return {options_.beta}; }
  static LossInfo info() { return {.name = "squared_hinge", .anchors = {{0, 0, 1}, {5, 0, 0.25}}}; }
};

int main() {
  register_loss<SquaredHingeLoss>();
  const std::string faults = testing::check_loss(SquaredHingeLoss()).text();

  auto policy = std::make_shared<Decoder>(DecoderOptions{.hidden_size = 32,
                                                         .intermediate_size = 64,
                                                         .num_hidden_layers = 2,
                                                         .num_attention_heads = 4,
                                                         .num_key_value_heads = 4});
  Trainer trainer(policy, make_frozen_reference(policy->frozen_copy()),
                  make_loss(R"({"type": "squared_hinge", "beta": 0.5})"),
                  {.optimizer = {.learning_rate = 1e-2, .schedule = Schedule::kConstant}});
  const std::vector<TokenRow> pairs = {{.prompt = {72}, .chosen = {105, 33}, .rejected = {63}},
                                       {.prompt = {79}, .chosen = {107}, .rejected = {63, 63}}};
  const double first = metric(trainer.step(pairs), "loss");
  for (int step = 0; step < 30; ++step) trainer.step(pairs);
  const double last = metric(trainer.evaluate(pairs), "loss");

  std::printf("%s\nloss %.6f, after training %.6f\n",
              faults.empty() ? "all checks hold" : faults.c_str(), first, last);
  return faults.empty() && first == 1 && last < 0.01 ? 0 : 1;
}
