// SPDX-License-Identifier: Apache-2.0
#include "prefopt/exact/loss.h"

#include <type_traits>
#include <utility>

#include "core/json.h"
#include "exact/tensors.h"
#include "losses/builtin_types.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"

namespace prefopt::exact {
namespace {

using Evaluator = ExactLoss::Evaluator;

template <class L>
class OnArrays final : public Evaluator {
 public:
  explicit OnArrays(L loss) : loss_(std::move(loss)) {}
  ExactLossOutput evaluate(const ExactPairLogps& in) const override { return loss_.evaluate(in); }

 private:
  L loss_;
};

class OnTensors final : public Evaluator {
 public:
  explicit OnTensors(Loss loss) : loss_(std::move(loss)) {}
  ExactLossOutput evaluate(const ExactPairLogps& in) const override {
    return as_arrays(loss_.forward(as_tensors(in)));
  }

 private:
  Loss loss_;
};

std::string options_of(const Loss& loss) {
  detail::Json config = detail::parse_json<ConfigError>(loss.config(), "loss");
  config.erase("type");
  return detail::dump_json(config);
}

/// Sets `evaluator` and returns true if `loss` is an `L` whose formula is a template.
template <class L>
bool take(const Loss& loss, std::shared_ptr<const Evaluator>& evaluator) {
  if constexpr (requires(const L& l, const ExactPairLogps& in) { l.evaluate(in); }) {
    const std::string name = L::info().name;
    if (loss.info().name != name) return false;
    using Options = std::remove_cvref_t<decltype(std::declval<const L&>().options())>;
    evaluator =
        std::make_shared<OnArrays<L>>(L(options_from_json<Options>(options_of(loss), name)));
    return true;
  } else {
    return false;
  }
}

template <class... L>
std::shared_ptr<const Evaluator> evaluator_of(const Loss& loss, detail::LossList<L...> /*types*/) {
  std::shared_ptr<const Evaluator> evaluator;
  if (!(take<L>(loss, evaluator) || ...)) evaluator = std::make_shared<OnTensors>(loss);
  return evaluator;
}

}  // namespace

ExactLoss::ExactLoss(std::string_view config_json) {
  const Loss loss = make_loss(config_json);
  evaluator_ = evaluator_of(loss, detail::BuiltinLosses{});
  requirements_ = loss.requirements();
  name_ = loss.info().name;
  config_ = loss.config();
}

}  // namespace prefopt::exact
