// SPDX-License-Identifier: Apache-2.0
#include "prefopt/logps/token_logps.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/special_entr.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "prefopt/error.h"

namespace prefopt {
namespace {

// Logits that may stand in memory at once: 64 MiB of float32.
constexpr std::int64_t kLogitsAtOnce = std::int64_t{1} << 24;

void check_floating(const at::Tensor& tensor, std::string_view where, std::string_view name) {
  if (!tensor.is_floating_point()) {
    throw DtypeError(fmt::format("{}: expected floating {}, got {}", where, name,
                                 c10::toString(tensor.scalar_type())));
  }
}

void check_targets(const at::Tensor& targets, const at::Tensor& rows, std::int64_t vocab_size,
                   std::string_view where) {
  if (targets.scalar_type() != at::kLong) {
    throw DtypeError(fmt::format("{}: expected int64 targets, got {}", where,
                                 c10::toString(targets.scalar_type())));
  }
  if (targets.dim() != 1 || targets.size(0) != rows.size(0)) {
    throw ShapeError(fmt::format("{}: expected targets [{}], got {}", where, rows.size(0),
                                 c10::str(targets.sizes())));
  }
  if (targets.device() != rows.device()) {
    throw DeviceError(fmt::format("{}: expected targets on {}, got {}", where, rows.device().str(),
                                  targets.device().str()));
  }
  // Elsewhere the look would stop the device; the gather kernel checks there.
  if (!targets.is_cpu()) return;
  const at::Tensor dense = targets.contiguous();
  const auto* values = dense.const_data_ptr<std::int64_t>();
  for (std::int64_t row = 0; row < dense.size(0); ++row) {
    if (values[row] < 0 || values[row] >= vocab_size) {
      throw DataError(fmt::format("{}: expected targets in [0, {}), got {} at row {}", where,
                                  vocab_size, values[row], row));
    }
  }
}

TokenByProducts by_products_of(const at::Tensor& logits, const at::Tensor& targets) {
  const at::NoGradGuard no_grad;
  return {.entropy = at::special_entr(logits.softmax(1)).sum(1),
          .mean_logit = logits.mean(1),
          .is_top1 = logits.argmax(1).eq(targets)};
}

TokenLogps checked_token_logps(const at::Tensor& logits, const at::Tensor& targets,
                               bool by_products) {
  const at::Tensor wide = logits.to(logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  TokenLogps result;
  result.logps = wide.gather(1, targets.unsqueeze(1)).squeeze(1) - wide.logsumexp(1);
  if (by_products) result.by_products = by_products_of(wide, targets);
  return result;
}

}  // namespace

TokenLogps token_logps(const at::Tensor& logits, const at::Tensor& targets, bool by_products) {
  check_floating(logits, "token_logps", "logits");
  if (logits.dim() != 2 || logits.size(1) == 0) {
    throw ShapeError(fmt::format("token_logps: expected logits [rows, vocab], got {}",
                                 c10::str(logits.sizes())));
  }
  check_targets(targets, logits, logits.size(1), "token_logps");
  return checked_token_logps(logits, targets, by_products);
}

TokenLogps linear_token_logps(const at::Tensor& hidden, const at::Tensor& weight,
                              const at::Tensor& targets, bool by_products) {
  constexpr std::string_view kWhere = "linear_token_logps";
  check_floating(hidden, kWhere, "hidden");
  if (weight.scalar_type() != hidden.scalar_type()) {
    throw DtypeError(fmt::format("{}: expected weight of dtype {} as hidden, got {}", kWhere,
                                 c10::toString(hidden.scalar_type()),
                                 c10::toString(weight.scalar_type())));
  }
  if (hidden.dim() != 2) {
    throw ShapeError(
        fmt::format("{}: expected hidden [rows, H], got {}", kWhere, c10::str(hidden.sizes())));
  }
  if (weight.dim() != 2 || weight.size(0) == 0 || weight.size(1) != hidden.size(1)) {
    throw ShapeError(fmt::format("{}: expected weight [vocab, {}], got {}", kWhere, hidden.size(1),
                                 c10::str(weight.sizes())));
  }
  if (weight.device() != hidden.device()) {
    throw DeviceError(fmt::format("{}: expected weight on {}, got {}", kWhere,
                                  hidden.device().str(), weight.device().str()));
  }
  check_targets(targets, hidden, weight.size(0), kWhere);

  // Without a graph only one chunk of logits lives at a time. With one the chunks are the same, so
  // that a policy and its frozen copy give the same bits.
  const std::int64_t rows = hidden.size(0);
  const std::int64_t chunk = std::max<std::int64_t>(1, kLogitsAtOnce / weight.size(0));
  const auto logits_of = [&](std::int64_t begin, std::int64_t end) {
    return at::mm(hidden.slice(0, begin, end), weight.t());
  };
  if (rows <= chunk) return checked_token_logps(logits_of(0, rows), targets, by_products);
  std::vector<at::Tensor> logps, entropy, mean_logit, is_top1;
  for (std::int64_t begin = 0; begin < rows; begin += chunk) {
    const std::int64_t end = std::min(rows, begin + chunk);
    const TokenLogps part =
        checked_token_logps(logits_of(begin, end), targets.slice(0, begin, end), by_products);
    logps.push_back(part.logps);
    if (!by_products) continue;
    entropy.push_back(part.by_products.entropy);
    mean_logit.push_back(part.by_products.mean_logit);
    is_top1.push_back(part.by_products.is_top1);
  }
  TokenLogps result{.logps = at::cat(logps), .by_products = {}};
  if (by_products) result.by_products = {at::cat(entropy), at::cat(mean_logit), at::cat(is_top1)};
  return result;
}

}  // namespace prefopt
