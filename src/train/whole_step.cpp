// SPDX-License-Identifier: Apache-2.0
#include "train/whole_step.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/max.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstdint>
#include <exception>

#include "prefopt/losses/pair_fields.h"

namespace prefopt::detail {
namespace {

using Field = PairField<at::Tensor>;

/// Returns a field's values of all parts; undefined without parts.
at::Tensor joined(const std::vector<PairLogps>& parts, const Field& field) {
  std::vector<at::Tensor> values;
  for (const PairLogps& part : parts) values.push_back(part.*field.value);
  return values.empty() ? at::Tensor() : at::cat(values);
}

/// The message of a rank to the others: a row of numbers. It begins with 1 where there is trouble
/// and the dtype of each field, 0 where the rank has no rows; then come the fields, each with room
/// for the rows of the rank that has most.
class WholeStep {
 public:
  WholeStep(const StepPlan& plan, const LossRequirements& needs, Ranks& ranks)
      : plan_(plan), ranks_(ranks), samples_(needs.samples_per_prompt) {
    for (const Field& field : kPairFields<at::Tensor>) {
      if (field.needed(needs)) fields_.push_back(&field);
    }
    std::vector<std::int64_t> rows(static_cast<std::size_t>(ranks.size()));
    for (const Share& share : plan.shares) rows[static_cast<std::size_t>(share.rank)] += share.rows;
    most_rows_ = *std::max_element(rows.begin(), rows.end());
  }

  at::Tensor message(const std::vector<PairLogps>& own, bool in_trouble) const {
    const at::Tensor message = at::zeros({end()}, at::kDouble);
    if (in_trouble) {
      message[0] = 1;
      return message;
    }
    std::int64_t begin = header();
    for (std::size_t i = 0; i < fields_.size(); ++i) {
      const at::Tensor values = joined(own, *fields_[i]);
      if (values.defined()) {
        message[static_cast<std::int64_t>(i) + 1] =
            static_cast<double>(static_cast<int>(values.scalar_type()) + 1);
        message.narrow(0, begin, values.size(0)).copy_(values);
      }
      begin += most_rows_ * width(*fields_[i]);
    }
    return message;
  }

  /// Returns the inputs of the whole step out of the messages of all ranks.
  PairLogps join(const at::Tensor& messages, at::Device device) const {
    PairLogps whole;
    whole.samples_per_prompt = samples_;
    std::int64_t begin = header();
    for (std::size_t i = 0; i < fields_.size(); ++i) {
      const Field& field = *fields_[i];
      const std::int64_t each = width(field);
      const auto code = messages.select(1, static_cast<std::int64_t>(i) + 1).max();
      const auto dtype = static_cast<at::ScalarType>(code.item<std::int64_t>() - 1);
      std::vector<std::int64_t> taken(static_cast<std::size_t>(ranks_.size()));
      std::vector<at::Tensor> values;
      for (const Share& share : plan_.shares) {
        std::int64_t& next = taken[static_cast<std::size_t>(share.rank)];
        values.push_back(messages[share.rank].narrow(0, begin + next, share.rows * each));
        next += share.rows * each;
      }
      whole.*field.value = at::cat(values).to(device, dtype);
      begin += most_rows_ * each;
    }
    return whole;
  }

 private:
  std::int64_t header() const { return std::ssize(fields_) + 1; }
  std::int64_t width(const Field& field) const { return field.per_sample() ? samples_ : 1; }
  std::int64_t end() const {
    std::int64_t end = header();
    for (const Field* field : fields_) end += most_rows_ * width(*field);
    return end;
  }

  const StepPlan& plan_;
  Ranks& ranks_;
  std::int64_t samples_;
  std::vector<const Field*> fields_;
  std::int64_t most_rows_ = 0;
};

PairLogps join_own(const std::vector<PairLogps>& parts, const LossRequirements& needs) {
  PairLogps whole;
  whole.samples_per_prompt = parts.front().samples_per_prompt;
  for (const Field& field : kPairFields<at::Tensor>) {
    if (field.needed(needs)) whole.*field.value = joined(parts, field);
  }
  return whole;
}

}  // namespace

PairLogps gather_inputs(const StepPlan& plan, const LossRequirements& needs, Ranks& ranks,
                        at::Device device, const std::function<std::vector<PairLogps>()>& measure) {
  if (ranks.size() == 1) return join_own(measure(), needs);
  const WholeStep step(plan, needs, ranks);
  std::exception_ptr trouble;
  at::Tensor own;
  try {
    own = step.message(measure(), /*in_trouble=*/false);
  } catch (...) {
    trouble = std::current_exception();
    own = step.message({}, /*in_trouble=*/true);
  }
  const at::Tensor messages = ranks.gather(own);
  if (trouble) std::rethrow_exception(trouble);
  if (messages.select(1, 0).max().item<double>() > 0) throw TroubleElsewhere();
  return step.join(messages, device);
}

}  // namespace prefopt::detail
