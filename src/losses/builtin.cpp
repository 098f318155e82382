// SPDX-License-Identifier: Apache-2.0
#include "losses/builtin.h"

#include "losses/builtin_types.h"

namespace prefopt::detail {
namespace {

template <class... L>
void add_all(const std::function<void(LossEntry)>& add, LossList<L...> /*types*/) {
  (add(loss_entry<L>()), ...);
}

}  // namespace

void for_each_builtin_loss(const std::function<void(LossEntry)>& add) {
  add_all(add, BuiltinLosses{});
}

}  // namespace prefopt::detail
