// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "lab/experiment.h"

namespace prefopt::lab {

namespace dpo_is_rlhf {
Report run(const Settings& settings);
}
namespace ipo_determinism {
Report run(const Settings& settings);
}
namespace rdpo_rates {
Report run(const Settings& settings);
}
namespace hypo_coverage {
Report run(const Settings& settings);
}
namespace rpo_overoptimization {
Report run(const Settings& settings);
}
namespace frontier {
Report run(const Settings& settings);
}
namespace fdpo_frontier {
Report run(const Settings& settings);
}
namespace vpo_regret {
Report run(const Settings& settings);
}
namespace robustness {
Report noise(const Settings& settings);
Report coverage(const Settings& settings);
Report length(const Settings& settings);
}  // namespace robustness
namespace nash_last_iterate {
Report run(const Settings& settings);
}
namespace self_play_average {
Report run(const Settings& settings);
}
namespace rso_law {
Report run(const Settings& settings);
}
namespace inpo_theory {
Report run(const Settings& settings);
}
namespace dno_monotone {
Report run(const Settings& settings);
}
namespace sppo_partition {
Report run(const Settings& settings);
}
namespace xpo_exploration {
Report run(const Settings& settings);
}
namespace apo_rounds {
Report run(const Settings& settings);
}
namespace on_policy_axes {
Report run(const Settings& settings);
}
namespace parl_gradient {
Report run(const Settings& settings);
}
namespace seppo_flip {
Report run(const Settings& settings);
}
namespace guide_tree {
Report run(const Settings& settings);
}
namespace demonstration_regularized {
Report run(const Settings& settings);
}
namespace pg_baselines {
Report run(const Settings& settings);
}
namespace pg_scale {
Report run(const Settings& settings);
}
namespace pg_length_bias {
Report run(const Settings& settings);
}
namespace pg_kl_placement {
Report run(const Settings& settings);
}
namespace pg_off_policy {
Report run(const Settings& settings);
}
namespace pg_resets {
Report run(const Settings& settings);
}
namespace pg_rank_filter {
Report run(const Settings& settings);
}
namespace pg_sampler_mismatch {
Report run(const Settings& settings);
}
namespace implicit_prm {
Report run(const Settings& settings);
}
namespace rto_lock {
Report run(const Settings& settings);
}
namespace guided_decoding {
Report run(const Settings& settings);
}
namespace oreo_variance {
Report run(const Settings& settings);
}
namespace iqlearn_diversity {
Report run(const Settings& settings);
}
namespace tree_labels {
Report run(const Settings& settings);
}

}  // namespace prefopt::lab
