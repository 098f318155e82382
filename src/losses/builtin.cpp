// SPDX-License-Identifier: Apache-2.0
#include "losses/builtin.h"

#include "prefopt/losses/alphapo.h"
#include "prefopt/losses/aot.h"
#include "prefopt/losses/apo.h"
#include "prefopt/losses/bco.h"
#include "prefopt/losses/bco_pair.h"
#include "prefopt/losses/beta_dpo.h"
#include "prefopt/losses/cal_dpo.h"
#include "prefopt/losses/chi_po.h"
#include "prefopt/losses/cpo.h"
#include "prefopt/losses/discopop.h"
#include "prefopt/losses/dpo.h"
#include "prefopt/losses/dpo_positive.h"
#include "prefopt/losses/exo_pair.h"
#include "prefopt/losses/f_dpo.h"
#include "prefopt/losses/hinge.h"
#include "prefopt/losses/hypo.h"
#include "prefopt/losses/ipo.h"
#include "prefopt/losses/kto.h"
#include "prefopt/losses/mix.h"
#include "prefopt/losses/nca_pair.h"
#include "prefopt/losses/orpo.h"
#include "prefopt/losses/r_dpo.h"
#include "prefopt/losses/reward_aware.h"
#include "prefopt/losses/robust_dpo.h"
#include "prefopt/losses/rpo.h"
#include "prefopt/losses/sft.h"
#include "prefopt/losses/sigmoid_norm.h"
#include "prefopt/losses/simpo.h"
#include "prefopt/losses/sppo.h"
#include "prefopt/losses/tdpo.h"
#include "prefopt/losses/tpo.h"
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
  add(loss_entry<HingeLoss>());
  add(loss_entry<ExoPairLoss>());
  add(loss_entry<NcaPairLoss>());
  add(loss_entry<BcoPairLoss>());
  add(loss_entry<SppoLoss>());
  add(loss_entry<AotLoss>());
  add(loss_entry<AotUnpairedLoss>());
  add(loss_entry<ApoZeroLoss>());
  add(loss_entry<ApoDownLoss>());
  add(loss_entry<DiscopopLoss>());
  add(loss_entry<SigmoidNormLoss>());
  add(loss_entry<SimpoLoss>());
  add(loss_entry<CpoLoss>());
  add(loss_entry<OrpoLoss>());
  add(loss_entry<AlphapoLoss>());
  add(loss_entry<TpoLoss>());
  add(loss_entry<KtoLoss>());
  add(loss_entry<KtoPairLoss>());
  add(loss_entry<BcoLoss>());
  add(loss_entry<RpoSquaredLoss>());
  add(loss_entry<RpoForwardKlLoss>());
  add(loss_entry<RpoBackwardKlLoss>());
  add(loss_entry<ChiPoLoss>());
  add(loss_entry<DpoPositiveLoss>());
  add(loss_entry<CalDpoLoss>());
  add(loss_entry<TdpoLoss>());
  add(loss_entry<RDpoLoss>());
  add(loss_entry<BetaDpoLoss>());
  add(loss_entry<MixLoss>());
}

}  // namespace prefopt::detail
