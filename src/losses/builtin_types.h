// SPDX-License-Identifier: Apache-2.0
#pragma once

// The one list of the losses that come with the library, with all their headers.

#include "prefopt/losses/alphapo.h"
#include "prefopt/losses/aot.h"
#include "prefopt/losses/apo.h"
#include "prefopt/losses/bco.h"
#include "prefopt/losses/bco_pair.h"
#include "prefopt/losses/beta_dpo.h"
#include "prefopt/losses/cal_dpo.h"
#include "prefopt/losses/chi_po.h"
#include "prefopt/losses/cpo.h"
#include "prefopt/losses/dft.h"
#include "prefopt/losses/discopop.h"
#include "prefopt/losses/dpo.h"
#include "prefopt/losses/dpo_positive.h"
#include "prefopt/losses/exo_pair.h"
#include "prefopt/losses/f_dpo.h"
#include "prefopt/losses/hinge.h"
#include "prefopt/losses/hypo.h"
#include "prefopt/losses/ipo.h"
#include "prefopt/losses/kto.h"
#include "prefopt/losses/kto_pair.h"
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

template <class... L>
struct LossList {};

/// In the order of the documentation.
using BuiltinLosses =
    LossList<DpoLoss, RobustDpoLoss, FDpoLoss, IpoLoss, RpoLoss, VpoLoss, HypoLoss, SftLoss,
             DftLoss, HingeLoss, ExoPairLoss, NcaPairLoss, BcoPairLoss, SppoLoss, AotLoss,
             AotUnpairedLoss, ApoZeroLoss, ApoDownLoss, DiscopopLoss, SigmoidNormLoss, SimpoLoss,
             CpoLoss, OrpoLoss, AlphapoLoss, TpoLoss, KtoLoss, KtoPairLoss, BcoLoss, RpoSquaredLoss,
             RpoForwardKlLoss, RpoBackwardKlLoss, ChiPoLoss, DpoPositiveLoss, CalDpoLoss, TdpoLoss,
             RDpoLoss, BetaDpoLoss, MixLoss>;

}  // namespace prefopt::detail
