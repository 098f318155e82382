// SPDX-License-Identifier: Apache-2.0
#include "lab/experiments.h"

#include "core/text.h"
#include "lab/neural_experiments.h"
#include "prefopt/error.h"

namespace prefopt::lab {

namespace {

// A network takes a thousand times as long as a table.
constexpr int kNetworks = 20, kQuickNetworks = 6;
// Of those that also write what they are trained on.
constexpr int kWriters = 10, kQuickWriters = 3;
// Of the reasoning task, each after a whole supervised training.
constexpr int kReasoners = 3;
/// Of the overloads of networks' experiments the one without a length.
using Run = Report (*)(const Settings&);

}  // namespace

const std::vector<Experiment>& experiments() {
  static const std::vector<Experiment> all{
      {"dpo-is-rlhf", "is DPO's optimum that of the KL-regularized reward", "2305.18290",
       dpo_is_rlhf::run},
      {"ipo-determinism", "what deterministic preferences do to DPO and to IPO", "2310.12036",
       ipo_determinism::run},
      {"rdpo-rates", "how rDPO's error falls with data and grows with label flips", "2403.00409",
       rdpo_rates::run},
      {"hypo-coverage", "what actions without data do to DPO and to HyPO", "2406.01462",
       hypo_coverage::run},
      {"rpo-overoptimization", "does the true reward fall when training continues", "2405.16436",
       rpo_overoptimization::run},
      {"frontier", "reward against distance from the reference for all losses", "2305.18290",
       frontier::run},
      {"fdpo-frontier", "what the divergence does to reward, entropy and calibration", "2309.16240",
       fdpo_frontier::run},
      {"vpo-regret", "does optimism lower regret, and pessimism the gap", "2405.19320",
       vpo_regret::run},
      {"noise", "wrong labels, all losses", "2403.00409", robustness::noise},
      {"coverage", "actions without pairs, all losses", "2405.16436", robustness::coverage},
      {"length", "labels that favour length, all losses", "2403.19159", robustness::length},
      {"nash-last-iterate", "does regularized self-play converge in the last iterate", "2312.00886",
       nash_last_iterate::run},
      {"self-play-average", "what self-play without a reference converges in", "2401.04056",
       self_play_average::run},
      {"rso-law", "do accepted samples follow the reward-tilted policy", "2309.06657",
       rso_law::run},
      {"inpo-theory", "is INPO's minimizer its exact round", "2407.00617", inpo_theory::run},
      {"dno-monotone", "does each round of DNO beat the one before", "2404.03715",
       dno_monotone::run},
      {"sppo-partition", "what SPPO's constant in place of log Z costs", "2405.00675",
       sppo_partition::run},
      {"xpo-exploration", "does optimism find a rare good action", "2405.21046",
       xpo_exploration::run},
      {"apo-rounds", "what extrapolation between rounds of DPO is worth", "2410.06293",
       apo_rounds::run},
      {"on-policy-axes", "own samples or a push down: what gets beyond the data", "2404.14367",
       on_policy_axes::run},
      {"parl-gradient", "what online DPO's gradient lacks", "2406.15567", parl_gradient::run},
      {"seppo-flip", "what a sign does where the reference is better", "2410.05255",
       seppo_flip::run},
      {"guide-tree", "what a guide that rolls in or out saves", "2306.11816", guide_tree::run},
      {"demonstration-regularized", "how demonstrations lower the need for pairs", "2310.17303",
       demonstration_regularized::run},
      {"pg-baselines", "which baselines leave a policy gradient unbiased, and its variance",
       "2402.14740", pg_baselines::run},
      {"pg-scale", "what division by the standard deviation does to the scale of rewards",
       "2402.03300", pg_scale::run},
      {"pg-length-bias", "which aggregation makes wrong answers longer", "2503.20783",
       pg_length_bias::run},
      {"pg-kl-placement", "where a policy gradient ends by the place of its KL", "2402.03300",
       pg_kl_placement::run},
      {"pg-off-policy", "which losses are exact on completions of another policy", "2501.12599",
       pg_off_policy::run},
      {"pg-resets", "what resets to prefixes of demonstrations save", "2404.08495", pg_resets::run},
      {"pg-rank-filter", "does a filter by rank make rewards more reliable", "2409.06957",
       pg_rank_filter::run},
      {"pg-sampler-mismatch", "what truncation of importance weights trades", "Ionides 2008",
       pg_sampler_mismatch::run},
      {"implicit-prm", "does a model trained on outcomes find wrong steps", "2412.01981",
       implicit_prm::run},
      {"rto-lock", "what token rewards of a DPO model save", "2404.18922", rto_lock::run},
      {"guided-decoding", "what guides of decoding reach, and the trade of two", "2410.08193",
       guided_decoding::run},
      {"oreo-variance", "what the Bellman residual of each token saves", "2412.16145",
       oreo_variance::run},
      {"iqlearn-diversity", "does inverse RL imitate with more diversity", "2409.01369",
       iqlearn_diversity::run},
      {"tree-labels", "how right the labels of steps are that a tree search gives", "2405.00451",
       tree_labels::run},
      {"neural-noise", "rdpo-rates' plateau with a transformer", "2403.00409",
       Run{neural_noise::run}, kNetworks, kQuickNetworks},
      {"neural-overoptimization", "rpo-overoptimization with a transformer", "2405.16436",
       Run{neural_overoptimization::run}, kNetworks, kQuickNetworks},
      {"neural-coverage", "hypo-coverage with a transformer", "2406.01462",
       Run{neural_coverage::run}, kNetworks, kQuickNetworks},
      {"neural-length-bias", "pg-length-bias with a transformer", "2503.20783",
       Run{neural_length_bias::run}, kNetworks, kQuickWriters},
      {"neural-kl-placement", "pg-kl-placement with a transformer", "2402.03300",
       Run{neural_kl_placement::run}, kWriters, kQuickWriters},
      {"neural-nash", "nash-last-iterate with a transformer", "2312.00886", Run{neural_nash::run},
       kWriters, kQuickWriters},
      {"neural-rso", "rso-law with a transformer", "2309.06657", Run{neural_rso::run}, kNetworks,
       kQuickWriters},
      {"neural-reasoning", "trees, whole completions and chosen steps at equal sampled tokens",
       "2405.00451", Run{neural_reasoning::run}, kReasoners, 1},
  };
  return all;
}

const Experiment& find_experiment(std::string_view name) {
  std::vector<std::string_view> names;
  for (const Experiment& experiment : experiments()) {
    if (experiment.name == name) return experiment;
    names.push_back(experiment.name);
  }
  names.push_back("all");
  throw ConfigError("lab: expected the name of an experiment, got '" + std::string(name) + "'" +
                    detail::did_you_mean(name, names));
}

}  // namespace prefopt::lab
