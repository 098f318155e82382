// SPDX-License-Identifier: Apache-2.0
#include "prefopt/losses/pairwise_loss.h"

#include <fmt/format.h>

#include "prefopt/error.h"

namespace prefopt {

void PairOptions::fields(FieldVisitor& v) {
  v.real({"margin_scale",
          "times the given reward gap, in reward units, is subtracted from beta * delta"},
         margin_scale, Range::at_least(0));
  v.choice({"margin_of", "margin_scale multiplies the gap, or its logarithm (ODPO)"}, margin_of,
           {"gap", "log_gap"});
  v.flag({"use_label_probs", "weigh both orders of a pair by the given label_probs"},
         use_label_probs);
  v.flag({"use_weights", "multiply each pair's loss by the given weights"}, use_weights);
  v.choice({"weighting", "weigh pairs by how likely the policy is to write them (WPO)"}, weighting,
           {"none", "unaligned", "sampled_alignment"});
  v.flag({"clamp_weighting", "limit those weights to 1, as the paper's code does"},
         clamp_weighting);
  // Added later: configs without it, and their hashes, are as they were.
  if (!v.writes() || data_gradient != 0) {
    v.real({"data_gradient",
            "weight of the gradient through pairs that the policy wrote itself (PARL, SAIL)"},
           data_gradient, Range::at_least(0));
  }
}

void PairOptions::check(std::string_view where) const {
  if (margin_of == MarginOf::kLogGap) {
    detail::refuse_idle(margin_scale == 0, where, "margin_of", "margin_scale is 0");
    if (use_label_probs) {
      throw ConfigError(fmt::format(
          "{}: expected margin_of 'gap' next to use_label_probs, got 'log_gap'; the swapped pair "
          "has the negative gap, which has no logarithm",
          where));
    }
  }
  detail::refuse_idle(clamp_weighting && weighting == Weighting::kNone, where, "clamp_weighting",
                      "there are no weights of weighting to limit");
}

void reduction_field(FieldVisitor& v, Reduction& reduction) {
  v.choice({"reduction", "NLL over tokens of the step, per sequence mean, or per sequence sum"},
           reduction, {"token_mean", "sequence_mean", "sum"});
}

void delta_link_field(FieldVisitor& v, DeltaLinkKind& kind) {
  v.choice({"link", "loss of the difference"}, kind, {"sigmoid", "hinge", "ipo"});
}

namespace detail {

void refuse_label_probs(bool use_label_probs, const std::string& name) {
  if (!use_label_probs) return;
  throw ConfigError(
      fmt::format("{}: expected use_label_probs false, got true; a term of it is about the chosen "
                  "or the rejected completion alone, which a probability leaves open",
                  name));
}

LossRequirements score_needs(const ScoreOptions& score) {
  const HumanlineOptions& humanline = score.humanline;
  const InputSet overlap = {Input::chosen_overlap_logps, Input::rejected_overlap_logps};
  const InputSet ref_overlap = {Input::ref_chosen_overlap_logps, Input::ref_rejected_overlap_logps};
  LossRequirements needs{.inputs = kPairLogps};
  needs.inputs |=
      when(!score.reference_free, kPairReferenceLogps) | when(score.length_normalized, kPairLens);
  if (score.ld_alpha != 1) needs.inputs |= overlap | when(!score.reference_free, ref_overlap);
  if (humanline.humanline) {
    needs.inputs |= {Input::chosen_limited_logratios, Input::rejected_limited_logratios};
    needs.limits = {humanline.log_epsilon_p, humanline.log_epsilon_r};
  }
  return needs;
}

void check_reduction(Reduction reduction, double weight, const std::string& name) {
  refuse_idle(reduction != Reduction::kTokenMean && weight == 0, name, "reduction",
              "the NLL that it reduces has weight 0");
}

void check_link_option(DeltaLinkKind kind, const char* option, double value,
                       const std::string& name) {
  if (value == 0 || kind == DeltaLinkKind::kSigmoid) return;
  throw ConfigError(
      fmt::format("{}: expected {} 0 where link is not sigmoid, got {}; the hinge and the squared "
                  "link have none",
                  name, option, value));
}

}  // namespace detail

}  // namespace prefopt
