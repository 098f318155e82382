// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "prefopt/export.h"

namespace prefopt {

/// Map from a model's raw output u to a logit: z = softcap · tanh(scale · u / softcap) /
/// temperature, or scale · u / temperature if softcap is 0. Gemma-2 has a softcap (2408.00118,
/// section 2), the Granite and Cohere families a scale.
struct LogitTransform {
  double scale = 1;
  double softcap = 0;      ///< raw logits; 0 turns it off
  double temperature = 1;  ///< > 0
};

/// Per-token quantities that come from the same pass over the logits. They are constants to
/// autograd, but for those of DifferentiableByProducts.
struct ByProducts {
  bool logsumexp = false;
  bool entropy = false;
  bool mean_logit = false;
  bool is_top1 = false;
  bool log_sum_p_squared = false;

  static constexpr ByProducts all() { return {true, true, true, true, true}; }
};

/// By-products that are in the graph of the logits; each is computed whether ByProducts asks for it
/// or not. With upstream gradients g_logp, g_entropy and g_logsumexp of a row, that of its logits
/// z, p = softmax(z), is
///   g_logp onehot(target) − (g_logp − g_logsumexp + g_entropy · entropy) p − g_entropy p log p.
struct DifferentiableByProducts {
  bool logsumexp = false;
  bool entropy = false;

  constexpr bool any() const { return logsumexp || entropy; }
};

/// The by-products that were requested; the others are undefined.
struct TokenByProducts {
  at::Tensor logsumexp;          ///< [rows] log Σ exp(z), nats
  at::Tensor entropy;            ///< [rows] −Σ p log p, nats
  at::Tensor mean_logit;         ///< [rows] mean of z over the vocabulary
  at::Tensor is_top1;            ///< [rows] bool: no token is more likely than the target
  at::Tensor log_sum_p_squared;  ///< [rows] log Σ p², nats (the normalizer of WPO, 2406.11827)
};

struct TokenLogps {
  at::Tensor logps;  ///< [rows] nats
  TokenByProducts by_products;
};

struct TokenLogpsOptions {
  ByProducts by_products = {};
  LogitTransform transform = {};
  /// [rows] bool. Rows outside of it cost nothing: their log-prob and by-products are 0, their
  /// target is not read, and they have no gradient. Undefined: all rows.
  at::Tensor mask = {};
  /// Of the log-probs: float32 or float64. By default float64 for float64 logits, else float32.
  std::optional<at::ScalarType> dtype = {};
  /// Lets the backward pass write the gradient over the logits, so that it needs no extra memory.
  /// Only for logits that nothing else needs (a second backward, or another function that saved
  /// them, then fails with autograd's error), and not for a leaf.
  bool overwrite_logits = false;
  DifferentiableByProducts differentiable = {};
};

/// Returns log softmax(z)[target] = z[target] − logsumexp(z), where z is `logits` after the
/// transform. Gradient with respect to z: onehot(target) − softmax(z).
///
/// logits [rows, vocab] float32, float64, bfloat16 or float16; targets [rows] int64 in [0, vocab).
/// Sums and exponentials are in float32 (float64 for float64), each row's result in float64 until
/// it is rounded once. First-order: a second derivative is refused.
///
/// Throws ConfigError, ShapeError, DtypeError, DeviceError, DataError (a target out of range).
PREFOPT_API TokenLogps token_logps(const at::Tensor& logits, const at::Tensor& targets,
                                   const TokenLogpsOptions& options = {});

/// Ways to compute log-probs from hidden states and the output head, and their gradient. One GEMM
/// is 2 · rows · H · vocab flops.
enum class HeadPath {
  kAutomatic,    ///< the cheapest that the budget allows
  kForwardOnly,  ///< nothing needs a gradient: 1 GEMM, no logits kept
  /// Only hidden needs one, and no by-product: 2 GEMMs, its gradient is built in the forward pass.
  kFrozenHead,
  /// 3 GEMMs, or 2 for hidden alone: logits of the whole vocabulary are kept for the backward pass.
  kKeepLogits,
  kRecompute,  ///< up to one GEMM more: keeps what the budget allows, recomputes the rest
};

/// Returns "automatic", "forward_only", "frozen_head", "keep_logits" or "recompute".
PREFOPT_API std::string to_string(HeadPath path);

struct LinearTokenLogpsOptions {
  ByProducts by_products;
  LogitTransform transform;
  at::Tensor bias;                      ///< [vocab], added to hidden · weightᵀ; undefined: none
  at::Tensor mask;                      ///< as in TokenLogpsOptions
  std::optional<at::ScalarType> dtype;  ///< as in TokenLogpsOptions
  /// Memory that both passes may take in addition to inputs, log-probs and returned gradients.
  std::int64_t budget_bytes = std::int64_t{1} << 30;
  HeadPath path = HeadPath::kAutomatic;
  /// No more GEMMs than for the log-probs alone, but for kFrozenHead, which is not possible then.
  DifferentiableByProducts differentiable = {};
};

/// Returns token_logps of logits = hidden · weightᵀ + bias, without holding the logits in memory
/// unless that is cheapest and the budget allows it.
///
/// hidden [rows, H], weight [vocab, H], bias [vocab], each float32, bfloat16 or float16, or all
/// float64; targets [rows] int64. Low precisions are widened tile by tile and multiplied in
/// float32. Differentiable in hidden, weight and bias, first-order.
///
/// Throws what token_logps throws, and ConfigError for a budget below one tile or a path that the
/// inputs do not allow.
PREFOPT_API TokenLogps linear_token_logps(const at::Tensor& hidden, const at::Tensor& weight,
                                          const at::Tensor& targets,
                                          const LinearTokenLogpsOptions& options = {});

/// The work of one call of linear_token_logps.
struct HeadWork {
  std::int64_t rows = 0;
  std::int64_t hidden_size = 0;
  std::int64_t vocab_size = 0;
  bool float64 = false;
  bool narrow_weight = false;  ///< bfloat16 or float16: tiles of it are widened
  bool hidden_grad = false;
  bool weight_grad = false;      ///< of weight or bias
  bool by_product_grad = false;  ///< a by-product is differentiable
};

/// The way in which linear_token_logps does it on a CPU.
struct HeadPlan {
  HeadPath path = HeadPath::kAutomatic;  ///< never kAutomatic in a result
  std::int64_t kept_vocab = 0;  ///< vocabulary rows whose logits wait for the backward pass
  std::int64_t tile_vocab = 0;  ///< vocabulary rows of one tile
  std::int64_t tile_rows = 0;   ///< token rows of one tile
  bool packs_once = false;      ///< hidden states stay packed during a pass
  std::int64_t bytes = 0;       ///< peak without inputs, log-probs and returned gradients
  double gemms = 0;             ///< of forward and backward together

  /// Returns a line such as "keep_logits: 3.00 GEMMs, 91.4 MiB, tiles of 2048 x 384".
  std::string text() const;
};

/// Returns the plan that linear_token_logps follows. Throws ConfigError in the same cases.
PREFOPT_API HeadPlan plan_head(const HeadWork& work,
                               std::int64_t budget_bytes = std::int64_t{1} << 30,
                               HeadPath path = HeadPath::kAutomatic);

}  // namespace prefopt
