// SPDX-License-Identifier: Apache-2.0
#include "decoder/adapters/adapter_file.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "kernels/block_tensor.h"
#include "math/wide_gradient.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"

namespace prefopt::detail {
namespace {

constexpr std::string_view kOther = "is the adapter for another model?";

struct Factors {
  at::Tensor a, b;
};

/// Returns what PEFT puts into A and B as it takes their product out of the weight.
Factors taken_out(BaseChange change, const at::Tensor& weight, std::int64_t rank, double scale) {
  if (change == BaseChange::kOlora) {
    const auto [q, r] = at::linalg_qr(weight.to(at::kFloat));
    return {r.narrow(0, 0, rank), q.narrow(1, 0, rank)};
  }
  const auto [u, s, vh] = at::linalg_svd(weight.to(at::kFloat), /*full_matrices=*/false);
  const at::Tensor root = (s.narrow(0, 0, rank) / scale).sqrt();
  return {root.unsqueeze(1) * vh.narrow(0, 0, rank), u.narrow(1, 0, rank) * root};
}

void append_negative(LowRank& part, const Factors& taken) {
  part.a = at::cat({part.a, taken.a.to(part.a.scalar_type())}, 0);
  part.b = at::cat({part.b, -taken.b.to(part.b.scalar_type())}, 1);
}

/// Doubles ranks, and alphas such that scales stay as they are.
void double_ranks(LoraOptions& options) {
  const auto each = [](std::string& json, const auto& change) {
    Json values = parse_json<ConfigError>(json, "lora");
    if (values.is_object()) {
      for (auto& item : values.items()) item.value() = change(item.value());
    }
    json = dump_json(values);
  };
  const double factor = options.use_rslora ? std::sqrt(2.0) : 2.0;
  options.r *= 2;
  options.lora_alpha *= factor;
  each(options.rank_pattern, [](const Json& rank) { return 2 * rank.get<std::int64_t>(); });
  each(options.alpha_pattern, [&](const Json& alpha) { return factor * alpha.get<double>(); });
}

}  // namespace

AdapterFile::AdapterFile(const std::string& path) : path_(path) {
  SafetensorsFile file = read_safetensors(path);
  for (auto& [name, tensor] : file.tensors) left_.emplace(name, std::move(tensor));
}

void AdapterFile::take(const std::string& key, at::Tensor& tensor) {
  const auto at = left_.find(key);
  if (at == left_.end()) {
    throw CheckpointError(
        fmt::format("{}: expected tensor '{}', got none of that name; {}", path_, key, kOther));
  }
  const at::Tensor& given = at->second;
  if (given.sizes() != tensor.sizes() || !given.is_floating_point()) {
    throw CheckpointError(
        fmt::format("{}: tensor '{}': expected shape {} of a floating dtype, got {} of {}; {}",
                    path_, key, c10::str(tensor.sizes()), c10::str(given.sizes()),
                    c10::toString(given.scalar_type()), kOther));
  }
  tensor = given.to(tensor.options(), /*non_blocking=*/false, /*copy=*/true);
  left_.erase(at);
}

void AdapterFile::check_nothing_left(const at::Tensor& embedding, const HeadUnder& head) {
  const auto drop_copy = [&](const std::string& module, const at::Tensor& own, double tolerance) {
    for (const char* end : {".base_layer.weight", ".weight"}) {
      const auto at = left_.find(peft_key(module) + end);
      if (at == left_.end() || !own.defined()) continue;
      const at::Tensor numbers = whole(kernels::with_numbers(own));
      const double bound = tolerance * numbers.abs().max().item<double>();
      const bool is_copy =
          at->second.sizes() == own.sizes() &&
          at::allclose(at->second.to(numbers.options()), numbers, /*rtol=*/0, bound);
      if (!is_copy) {
        throw CheckpointError(fmt::format(
            "{}: tensor '{}': expected the values under the adapter in this model, got others; was "
            "it made over another one?",
            path_, at->first));
      }
      left_.erase(at);
    }
  };
  drop_copy("model.embed_tokens", embedding, 0);
  drop_copy("lm_head", head.weight, head.tolerance);
  if (left_.empty()) return;
  throw CheckpointError(
      fmt::format("{}: expected the tensors of adapter_config.json's targets only, got '{}'; {}",
                  path_, left_.begin()->first, kOther));
}

HeadUnder head_under(BaseChange change, const Network& base, const AdapterParts& parts) {
  const auto part =
      std::find_if(parts.low_rank.begin(), parts.low_rank.end(),
                   [](const LowRank& each) { return each.module.kind == ModuleKind::kHead; });
  if (change == BaseChange::kNone || part == parts.low_rank.end()) return {base.head()};
  const std::int64_t rank = part->a.size(0) / 2;  // the rest is what was taken out
  const at::Tensor taken = part->b.narrow(1, rank, rank).mm(part->a.narrow(0, rank, rank));
  return {whole(kernels::with_numbers(base.head())) + part->scale * taken,
          is_narrow(base.head().scalar_type()) ? 1e-2 : 1e-5};
}

void undo_base_change(BaseChange change, const Network& base, AdapterParts& parts,
                      LoraOptions& options, const std::string& where) {
  if (change == BaseChange::kNone) return;
  const at::NoGradGuard no_grad;
  const auto trained = trained_weights(base, parts);
  for (LowRank& part : parts.low_rank) {
    if (part.module.kind == ModuleKind::kEmbedding) {  // PEFT leaves it as it is
      append_negative(part, {at::zeros_like(part.a), at::zeros_like(part.b)});
      continue;
    }
    const at::Tensor weight = whole(trained.at(part.module.weight + ".weight").weight);
    const std::int64_t rank = part.a.size(0);
    const std::int64_t most = std::min(weight.size(0), weight.size(1));
    if (rank > most) {
      throw CheckpointError(fmt::format("{}: expected a rank of at most {}, that of '{}', got {}",
                                        where, most, part.module.name, rank));
    }
    if (!std::isfinite(weight.abs().max().item<double>())) {
      throw CheckpointError(
          fmt::format("{}: expected finite weights under an adapter that took a part of them out, "
                      "got others in "
                      "'{}'",
                      where, part.module.name));
    }
    append_negative(part, taken_out(change, weight, rank, part.scale));
  }
  double_ranks(options);
  // As they are computed of the options when those come back from a file.
  const LoraRules rules(options, where);
  parts.common_scale = rules.common_scale();
  for (LowRank& part : parts.low_rank) part.scale = rules.scale_of(part.module.name);
}

}  // namespace prefopt::detail
