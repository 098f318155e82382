// SPDX-License-Identifier: Apache-2.0
#include "losses/builtin.h"

#include "prefopt/losses/dpo.h"
#include "prefopt/losses/f_dpo.h"
#include "prefopt/losses/hypo.h"
#include "prefopt/losses/ipo.h"
#include "prefopt/losses/robust_dpo.h"
#include "prefopt/losses/rpo.h"
#include "prefopt/losses/sft.h"
#include "prefopt/losses/vpo.h"

namespace prefopt::detail {

void for_each_builtin_loss(const std::function<void(LossEntry)>& add) {
  add(loss_entry<DpoLoss>());
  add(loss_entry<RobustDpoLoss>());
  add(loss_entry<FDpoLoss>());
  add(loss_entry<IpoLoss>());
  add(loss_entry<RpoLoss>());
  add(loss_entry<VpoLoss>());
  add(loss_entry<HypoLoss>());
  add(loss_entry<SftLoss>());
}

}  // namespace prefopt::detail
