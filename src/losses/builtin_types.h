// SPDX-License-Identifier: Apache-2.0
#pragma once

// The one list of the losses that come with the library, with all their headers.

#include "prefopt/losses/mix.h"
#include "prefopt/losses/pair/alphapo.h"
#include "prefopt/losses/pair/aot.h"
#include "prefopt/losses/pair/apo.h"
#include "prefopt/losses/pair/bco.h"
#include "prefopt/losses/pair/bco_pair.h"
#include "prefopt/losses/pair/beta_dpo.h"
#include "prefopt/losses/pair/cal_dpo.h"
#include "prefopt/losses/pair/ce.h"
#include "prefopt/losses/pair/chi_po.h"
#include "prefopt/losses/pair/cpo.h"
#include "prefopt/losses/pair/dft.h"
#include "prefopt/losses/pair/discopop.h"
#include "prefopt/losses/pair/dpo.h"
#include "prefopt/losses/pair/dpo_positive.h"
#include "prefopt/losses/pair/exo_pair.h"
#include "prefopt/losses/pair/f_dpo.h"
#include "prefopt/losses/pair/hinge.h"
#include "prefopt/losses/pair/hypo.h"
#include "prefopt/losses/pair/ipo.h"
#include "prefopt/losses/pair/kto.h"
#include "prefopt/losses/pair/kto_pair.h"
#include "prefopt/losses/pair/nca_pair.h"
#include "prefopt/losses/pair/orpo.h"
#include "prefopt/losses/pair/policy_gradient.h"
#include "prefopt/losses/pair/r_dpo.h"
#include "prefopt/losses/pair/reward_aware.h"
#include "prefopt/losses/pair/reward_bt.h"
#include "prefopt/losses/pair/robust_dpo.h"
#include "prefopt/losses/pair/rpo.h"
#include "prefopt/losses/pair/seppo.h"
#include "prefopt/losses/pair/sft.h"
#include "prefopt/losses/pair/sigmoid_norm.h"
#include "prefopt/losses/pair/simpo.h"
#include "prefopt/losses/pair/sppo.h"
#include "prefopt/losses/pair/tdpo.h"
#include "prefopt/losses/pair/tpo.h"
#include "prefopt/losses/pair/vpo.h"
#include "prefopt/losses/pair/xpo.h"

namespace prefopt::detail {

template <class... L>
struct LossList {};

/// In the order of the documentation.
using BuiltinLosses =
    LossList<DpoLoss, RobustDpoLoss, FDpoLoss, IpoLoss, RpoLoss, VpoLoss, HypoLoss, SftLoss,
             DftLoss, HingeLoss, ExoPairLoss, NcaPairLoss, BcoPairLoss, SppoLoss, AotLoss,
             AotUnpairedLoss, ApoZeroLoss, ApoDownLoss, DiscopopLoss, SigmoidNormLoss, SimpoLoss,
             CpoLoss, OrpoLoss, AlphapoLoss, TpoLoss, KtoLoss, KtoPairLoss, BcoLoss, CeLoss,
             RpoSquaredLoss, RpoForwardKlLoss, RpoBackwardKlLoss, ChiPoLoss, DpoPositiveLoss,
             CalDpoLoss, TdpoLoss, RDpoLoss, BetaDpoLoss, XpoLoss, SeppoLoss, PolicyGradientLoss,
             RewardBtLoss, MixLoss>;

}  // namespace prefopt::detail
