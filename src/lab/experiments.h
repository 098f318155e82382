// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "lab/experiment.h"

namespace prefopt::lab {

Report dpo_is_rlhf(const Settings& settings);
Report ipo_determinism(const Settings& settings);
Report rdpo_rates(const Settings& settings);
Report hypo_coverage(const Settings& settings);
Report rpo_overoptimization(const Settings& settings);
Report frontier(const Settings& settings);
Report fdpo_frontier(const Settings& settings);
Report vpo_regret(const Settings& settings);
Report noise(const Settings& settings);
Report coverage(const Settings& settings);
Report length(const Settings& settings);
Report nash_last_iterate(const Settings& settings);
Report self_play_average(const Settings& settings);
Report rso_law(const Settings& settings);
Report inpo_theory(const Settings& settings);
Report dno_monotone(const Settings& settings);
Report sppo_partition(const Settings& settings);
Report xpo_exploration(const Settings& settings);
Report apo_rounds(const Settings& settings);
Report on_policy_axes(const Settings& settings);
Report parl_gradient(const Settings& settings);
Report seppo_flip(const Settings& settings);
Report guide_tree(const Settings& settings);
Report demonstration_regularized(const Settings& settings);
Report pg_baselines(const Settings& settings);
Report pg_scale(const Settings& settings);
Report pg_length_bias(const Settings& settings);
Report pg_kl_placement(const Settings& settings);
Report pg_off_policy(const Settings& settings);
Report pg_resets(const Settings& settings);
Report pg_rank_filter(const Settings& settings);
Report pg_sampler_mismatch(const Settings& settings);
Report implicit_prm(const Settings& settings);
Report rto_lock(const Settings& settings);
Report guided_decoding(const Settings& settings);
Report oreo_variance(const Settings& settings);
Report iqlearn_diversity(const Settings& settings);
Report tree_labels(const Settings& settings);
Report neural_noise(const Settings& settings);
Report neural_overoptimization(const Settings& settings);
Report neural_coverage(const Settings& settings);
Report neural_reasoning(const Settings& settings);

}  // namespace prefopt::lab
