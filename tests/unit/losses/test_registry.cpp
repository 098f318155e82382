// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <string>

#include "prefopt/error.h"
#include "prefopt/losses/dpo.h"
#include "prefopt/losses/registry.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/pairs.h"

namespace prefopt {
namespace {

using nlohmann::json;

std::string type_of(const char* config) { return json::parse(make_loss(config).config())["type"]; }

TEST_CASE("losses by name and by TRL's names", "[losses]") {
  CHECK(type_of(R"({"type": "dpo"})") == "dpo");
  CHECK(type_of(R"({"type": "sigmoid"})") == "dpo");
  CHECK(type_of(R"({"type": "robust"})") == "robust_dpo");
  CHECK(type_of(R"({"loss_type": "ipo"})") == "ipo");
  CHECK(type_of(R"({"loss_type": ["robust"], "label_smoothing": 0.1})") == "robust_dpo");
  const json trl =
      json::parse(make_loss(R"({"loss_type": "sigmoid", "f_divergence_type": "alpha_divergence",
                    "f_alpha_divergence_coef": 0.3})")
                      .config());
  CHECK(trl["divergence"] == "alpha_divergence");
  CHECK(trl["divergence_alpha"] == 0.3);
  const json rpo = json::parse(
      make_loss(R"({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.25]})").config());
  CHECK(rpo["type"] == "rpo");
  CHECK(rpo["eta"] == 0.25);
  CHECK(rpo["reduction"] == "token_mean");
}

TEST_CASE("configs that cannot be meant", "[losses]") {
  CHECK_THROWS_TEXT(make_loss(R"({"beta": 0.1})"), ConfigError,
                    R"(loss: expected a key 'type' that names a loss, got {"beta":0.1})");
  CHECK_THROWS_TEXT(make_loss("[]"), ConfigError,
                    "loss: expected an object with a key 'type', got []");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "dop"})"), ConfigError,
                    "loss: expected a registered loss, got 'dop'; did you mean 'dpo'?");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "robust_dop"})"), ConfigError,
                    "loss: expected a registered loss, got 'robust_dop'; did you mean "
                    "'robust_dpo'?");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "dpo", "beta": 0})"), ConfigError,
                    "dpo: expected beta > 0, got 0");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "robust", "label_smoothing": 0.5})"), ConfigError,
                    "robust_dpo: expected label_smoothing in [0, 0.5), got 0.5");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "dpo", "beta": "0.1"})"), ConfigError,
                    R"(dpo: expected beta to be a number, got "0.1")");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "dpo", "beta": 1, "beta": 2})"), ConfigError,
                    "loss: expected JSON, got the key 'beta' twice");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "ipo", "beta": 1, "tau": 2})"), ConfigError,
                    "ipo: expected beta once, got it as 'beta' and as 'tau'");
  CHECK_THROWS_TEXT(make_loss(R"({"type": "vpo", "mode": "onlin"})"), ConfigError,
                    "vpo: expected mode to be one of 'offline', 'online', got 'onlin'; did you "
                    "mean 'online'?");
  CHECK_THROWS_TEXT(make_loss(R"({"loss_type": ["sigmoid", "ipo"]})"), ConfigError,
                    R"(loss: expected one loss_type, or sigmoid with sft and loss_weights )"
                    R"([1, eta], got ["sigmoid","ipo"] with loss_weights [])");
  CHECK_THROWS_TEXT(DpoLoss({.beta = -1}), ConfigError, "dpo: expected beta > 0, got -1");
  CHECK_THROWS_TEXT(DpoLoss({.beta = std::nan("")}), ConfigError,
                    "dpo: expected beta > 0, got nan");
}

// A loss of a user's own: hinge, by the same algebra.
struct HingeLink {
  double beta;
  template <class T>
  T value(const T& delta) const {
    const T z = beta * delta;
    return at::relu(1 - z);
  }
  template <class T>
  T derivative(const T& delta) const {
    const T z = beta * delta;
    return -beta * (z < 1).to(delta.scalar_type());
  }
};

class MyHinge : public PairwiseLoss<MyHinge, DpoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;
  HingeLink link() const { return {options_.beta}; }
  static LossInfo info() { return {.name = "my_hinge", .aliases = {"my_slic"}}; }
};

TEST_CASE("a loss that is not registered can be used as it is", "[losses]") {
  using namespace testing_support;
  PairLogps in = to_tensors(random_pairs(5, 0, 9));
  in.chosen_logps.requires_grad_();
  const Loss loss = MyHinge({.beta = 0.2});
  const LossOutput out = loss(in);
  const at::Tensor delta =
      (in.chosen_logps - in.ref_chosen_logps) - (in.rejected_logps - in.ref_rejected_logps);
  const at::Tensor expected = at::clamp_min(1 - 0.2 * delta, 0).mean();
  CHECK(out.loss.item<double>() == Approx(expected.item<double>()));
  out.loss.backward();
  const at::Tensor gradient = in.chosen_logps.grad().clone();
  in.chosen_logps.mutable_grad().zero_();
  expected.backward();
  CHECK(at::allclose(gradient, in.chosen_logps.grad()));
}

TEST_CASE("names that are taken are refused", "[losses]") {
  LossEntry entry = loss_entry<MyHinge>();
  entry.info.name = "dpo";
  CHECK_THROWS_TEXT(register_loss(entry), ConfigError,
                    "loss: expected a name that is free, got 'dpo'");
  entry.info.name = "other";
  entry.info.aliases = {"robust"};
  CHECK_THROWS_TEXT(register_loss(entry), ConfigError,
                    "loss: expected a name that is free, got 'robust'");
}

}  // namespace
}  // namespace prefopt
