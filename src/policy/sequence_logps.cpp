// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/sequence_logps.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "data/token_weights.h"
#include "math/upload.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

void check_batch(const TokenBatch& batch) {
  const auto check_shape = [](const at::Tensor& tensor, at::IntArrayRef shape,
                              std::string_view name) {
    if (!tensor.defined() || tensor.sizes() != shape) {
      throw ShapeError(fmt::format("sequence_logps: expected {} {}, got {}", name, c10::str(shape),
                                   tensor.defined() ? c10::str(tensor.sizes()) : "none"));
    }
  };
  const auto check_dtype = [](const at::Tensor& tensor, at::ScalarType dtype,
                              std::string_view name) {
    if (tensor.scalar_type() != dtype) {
      throw DtypeError(fmt::format("sequence_logps: expected {} of dtype {}, got {}", name,
                                   c10::toString(dtype), c10::toString(tensor.scalar_type())));
    }
  };
  if (!batch.input_ids.defined() || batch.input_ids.dim() != 2 || batch.input_ids.numel() == 0) {
    throw ShapeError(
        fmt::format("sequence_logps: expected input_ids [S, T], got {}",
                    batch.input_ids.defined() ? c10::str(batch.input_ids.sizes()) : "none"));
  }
  check_shape(batch.attention_mask, batch.input_ids.sizes(), "attention_mask");
  check_shape(batch.completion_mask, batch.input_ids.sizes(), "completion_mask");
  check_shape(batch.completion_lens, {batch.sequences()}, "completion_lens");
  check_token_weights(batch, "sequence_logps");
  check_dtype(batch.input_ids, at::kLong, "input_ids");
  check_dtype(batch.attention_mask, at::kBool, "attention_mask");
  check_dtype(batch.completion_mask, at::kBool, "completion_mask");
  check_dtype(batch.completion_lens, at::kLong, "completion_lens");
  if (!batch.completion_lens.is_cpu()) {
    throw DeviceError(fmt::format("sequence_logps: expected completion_lens on cpu, got {}",
                                  batch.completion_lens.device().str()));
  }
}

void check_temperature(double temperature) {
  if (temperature > 0 && std::isfinite(temperature)) return;
  throw ConfigError(fmt::format("sequence_logps: expected temperature > 0, got {}", temperature));
}

// [S, T, n] to [S * T, n].
at::Tensor rows_of(const at::Tensor& output, const TokenBatch& batch, std::string_view name) {
  const auto sizes = batch.input_ids.sizes();
  if (output.dim() != 3 || output.size(0) != sizes[0] || output.size(1) != sizes[1]) {
    throw ShapeError(fmt::format("sequence_logps: expected {} [{}, {}, n] of the policy, got {}",
                                 name, sizes[0], sizes[1], c10::str(output.sizes())));
  }
  return output.reshape({sizes[0] * sizes[1], output.size(2)});
}

// Returns the weight of each row by its place, or undefined where all are 1.
at::Tensor tail_weights(const SequenceReduction& reduction, const SequenceLogps& sequences) {
  if (!reduction.overlap_lens.defined()) return {};
  const at::Tensor& lens = sequences.lens;
  if (reduction.overlap_lens.scalar_type() != at::kLong) {
    throw DtypeError(fmt::format("sequence_logps: expected int64 overlap_lens, got {}",
                                 c10::toString(reduction.overlap_lens.scalar_type())));
  }
  if (reduction.overlap_lens.sizes() != lens.sizes()) {
    throw ShapeError(fmt::format("sequence_logps: expected overlap_lens {}, got {}",
                                 c10::str(lens.sizes()), c10::str(reduction.overlap_lens.sizes())));
  }
  const at::Tensor& sequence = sequences.row_to_sequence;
  const at::Tensor starts = (lens.cumsum(0) - lens).index_select(0, sequence);
  const at::Tensor place = at::arange(sequence.size(0), lens.options()) - starts;
  const at::Tensor end =
      detail::uploaded(reduction.overlap_lens, lens.device()).index_select(0, sequence);
  return at::ones({sequence.size(0)}, lens.options().dtype(at::kDouble))
      .masked_fill_(place.ge(end), reduction.tail_weight);
}

// Returns the weight of each row, or undefined where all are 1.
at::Tensor row_weights(const SequenceReduction& reduction, const SequenceLogps& sequences) {
  const at::Tensor of_tail = tail_weights(reduction, sequences);
  const at::Tensor& given = sequences.token_weights;
  if (!given.defined() || !of_tail.defined()) return given.defined() ? given : of_tail;
  return given * of_tail;
}

TokenLogps selected(TokenLogps tokens, const at::Tensor& rows) {
  const auto select = [&](at::Tensor& of_rows) {
    if (of_rows.defined()) of_rows = of_rows.index_select(0, rows);
  };
  select(tokens.logps);
  select(tokens.by_products.logsumexp);
  select(tokens.by_products.entropy);
  select(tokens.by_products.mean_logit);
  select(tokens.by_products.is_top1);
  select(tokens.by_products.log_sum_p_squared);
  return tokens;
}

[[noreturn]] void refuse_mask(const TokenBatch& batch, std::int64_t found) {
  throw ShapeError(fmt::format(
      "sequence_logps: expected completion_mask to hold the {} tokens of completion_lens after "
      "the first column, sequence by sequence, got {}",
      batch.completion_lens.sum().item<std::int64_t>(), found));
}

// Returns the places in a flat batch of the positions that predict completion tokens. Token t is
// predicted at position t - 1: the mask shifted by one picks them.
at::Tensor checked_rows(const TokenBatch& batch) {
  const at::Tensor mask = batch.completion_mask.slice(1, 1);
  const at::Tensor places = mask.reshape(-1).nonzero().squeeze(1);
  if (!mask.sum(1).cpu().equal(batch.completion_lens)) refuse_mask(batch, places.size(0));
  // A flat index into it counts a column less for each sequence.
  const std::int64_t width = batch.input_ids.size(1);
  return places + places.div(std::max<std::int64_t>(width - 1, 1), "floor");
}

// Returns the sequence of each completion token, on the batch's device.
at::Tensor sequences_of_tokens(const TokenBatch& batch) {
  const at::Tensor sequences =
      at::arange(batch.sequences(), at::kLong).repeat_interleave(batch.completion_lens);
  return detail::uploaded(sequences, batch.input_ids.device());
}

// Log-probs of the completion tokens of `batch`, sequence after sequence.
TokenLogps completion_logps(Policy& policy, const TokenBatch& batch,
                            const SequenceLogpsOptions& options) {
  const auto of_hidden = [&](const at::Tensor& hidden, const at::Tensor& targets) {
    OutputHead head = policy.head();
    head.transform.temperature *= options.temperature;
    return linear_token_logps(hidden, head.weight, targets,
                              {.by_products = options.by_products,
                               .transform = head.transform,
                               .bias = head.bias,
                               .mask = {},
                               .dtype = std::nullopt,
                               .budget_bytes = options.budget_bytes,
                               .path = options.path,
                               .differentiable = options.differentiable});
  };
  if (batch.packed && policy.packs()) {
    const PackedTokens& packed = *batch.packed;
    // A look at the mask would stop a device, and a stream does not need it.
    if (batch.input_ids.is_cpu()) (void)checked_rows(batch);
    if (packed.token_rows.size(0) != batch.completion_lens.sum().item<std::int64_t>()) {
      refuse_mask(batch, packed.token_rows.size(0));
    }
    return selected(of_hidden(policy.forward_packed(packed), packed.targets), packed.token_rows);
  }
  const at::Tensor rows = checked_rows(batch);
  const at::Tensor targets = batch.input_ids.reshape(-1).index_select(0, rows + 1);
  const PolicyOutput output = policy.forward(batch);
  if (output.hidden.defined() == output.logits.defined()) {
    throw ShapeError(fmt::format("sequence_logps: expected hidden or logits of the policy, got {}",
                                 output.hidden.defined() ? "both" : "neither"));
  }
  // Logits that a policy gives are read in place; hidden states are gathered, since the
  // head multiplies whole tiles of them.
  if (output.hidden.defined()) {
    return of_hidden(rows_of(output.hidden, batch, "hidden").index_select(0, rows), targets);
  }
  const at::Tensor logits = rows_of(output.logits, batch, "logits");
  const at::Tensor row_targets =
      at::zeros({logits.size(0)}, targets.options()).index_copy(0, rows, targets);
  const at::Tensor mask =
      at::zeros({logits.size(0)}, targets.options().dtype(at::kBool)).index_fill(0, rows, true);
  return selected(token_logps(logits, row_targets,
                              {.by_products = options.by_products,
                               .transform = {.temperature = options.temperature},
                               .mask = mask,
                               .dtype = std::nullopt,
                               .differentiable = options.differentiable}),
                  rows);
}

}  // namespace

at::Tensor reduce_tokens(const at::Tensor& token_values, const SequenceLogps& sequences,
                         const SequenceReduction& reduction) {
  if (token_values.dim() != 1 || token_values.size(0) != sequences.row_to_sequence.size(0)) {
    throw ShapeError(fmt::format("reduce_tokens: expected token_values [{}], got {}",
                                 sequences.row_to_sequence.size(0),
                                 c10::str(token_values.sizes())));
  }
  const at::Tensor weights = row_weights(reduction, sequences);
  const at::Tensor wide = token_values.to(at::kDouble);
  const at::Tensor sums =
      at::zeros({sequences.lens.size(0)}, wide.options())
          .index_add(0, sequences.row_to_sequence, weights.defined() ? wide * weights : wide);
  return reduction.mean ? sums / sequences.lens : sums;
}

SequenceLogps sequence_logps(Policy& policy, const TokenBatch& batch,
                             const SequenceLogpsOptions& options) {
  check_batch(batch);
  check_temperature(options.temperature);
  TokenLogps tokens = completion_logps(policy, batch, options);
  SequenceLogps result;
  result.row_to_sequence = sequences_of_tokens(batch);
  result.token_logps = std::move(tokens.logps);
  result.by_products = std::move(tokens.by_products);
  result.lens = detail::uploaded(batch.completion_lens, result.token_logps.device());
  if (batch.token_weights.defined()) {
    result.token_weights = detail::uploaded(batch.token_weights, result.token_logps.device());
  }
  result.logps = reduce_tokens(result.token_logps, result, options.reduction);
  return result;
}

}  // namespace prefopt
