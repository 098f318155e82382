// SPDX-License-Identifier: Apache-2.0
#include "prefopt/model/sampling.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "prefopt/error.h"

namespace prefopt {
namespace {

// Steele, Lea, Flood 2014: spreads neighbouring seeds over all 64 bits.
std::uint64_t splitmix64(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// One stream a prompt, so that a sample does not depend on its neighbours in the batch.
std::mt19937_64 stream_of(std::int64_t seed, std::int64_t index) {
  const std::uint64_t spread = splitmix64(static_cast<std::uint64_t>(seed));
  return std::mt19937_64(splitmix64(spread ^ static_cast<std::uint64_t>(index)));
}

// In [0, 1), all 53 bits; std::uniform_real_distribution differs between standard libraries.
double uniform(std::mt19937_64& stream) { return static_cast<double>(stream() >> 11) * 0x1.0p-53; }

// First index whose cumulative probability exceeds `share` of the total.
std::int64_t draw(const float* probabilities, std::int64_t size, double share) {
  double total = 0;
  for (std::int64_t i = 0; i < size; ++i) total += probabilities[i];
  double cumulative = 0;
  std::int64_t last_possible = 0;
  for (std::int64_t i = 0; i < size; ++i) {
    if (probabilities[i] == 0) continue;
    cumulative += probabilities[i];
    last_possible = i;
    if (cumulative > share * total) return i;
  }
  return last_possible;
}

// A row may hold -inf (a token that cannot come), but neither NaN nor +inf, nor -inf only.
void check_logits(const at::Tensor& logits) {
  if (logits.dim() != 2 || logits.size(1) == 0) {
    throw ShapeError(
        fmt::format("sampling: expected logits [S, vocab], got {}", c10::str(logits.sizes())));
  }
  if (!logits.is_floating_point()) {
    throw DtypeError(fmt::format("sampling: expected floating logits, got {}",
                                 c10::toString(logits.scalar_type())));
  }
  const at::Tensor highest = logits.amax(1).to(at::kDouble).cpu();
  for (std::int64_t s = 0; s < highest.size(0); ++s) {
    const auto value = highest[s].item<double>();
    if (!std::isfinite(value)) {
      throw NonFiniteError(fmt::format(
          "sampling: expected finite logits, got {} as the highest of sequence {}", value, s));
    }
  }
}

}  // namespace

void SamplingOptions::fields(FieldVisitor& v) {
  v.integer({"max_new_tokens", "longest completion, the end token included"}, max_new_tokens,
            Range::at_least(1));
  v.real({"temperature", "divides the logits; 0: the most likely token"}, temperature,
         Range::at_least(0));
  v.integer({"top_k", "only the k most likely tokens; 0: off"}, top_k, Range::at_least(0));
  v.real({"top_p", "only the most likely tokens that together reach p; 1: off"}, top_p,
         {.min = 0, .max = 1, .min_open = true});
  v.integer({"eos_id", "end token; -1: none"}, eos_id, Range::at_least(-1));
  v.integer({"seed", "of all draws"}, seed, Range::any());
}

at::Tensor sampling_probabilities(const at::Tensor& logits, const SamplingOptions& options) {
  checked(options, "sampling");
  const at::NoGradGuard no_grad;
  check_logits(logits);
  if (options.temperature == 0) {
    return at::zeros(logits.sizes(), logits.options().dtype(at::kFloat).requires_grad(false))
        .scatter(1, logits.argmax(1, /*keepdim=*/true), 1.0);
  }
  // The highest logit becomes 0 first: no temperature can then overflow.
  const at::Tensor wide = logits.to(at::kDouble);
  const at::Tensor scaled = (wide - wide.amax(1, /*keepdim=*/true)) / options.temperature;
  const bool keeps_all = options.top_k == 0 && options.top_p == 1;
  if (keeps_all) return scaled.softmax(1).to(at::kFloat);

  // Stable: of equal logits the smaller index counts as the more likely one.
  auto [sorted, order] = at::sort(scaled, /*stable=*/true, /*dim=*/1, /*descending=*/true);
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  if (options.top_k > 0 && options.top_k < sorted.size(1)) {
    sorted.slice(1, options.top_k).fill_(kNever);
  }
  if (options.top_p < 1) {
    const at::Tensor probabilities = sorted.softmax(1);
    const at::Tensor before = probabilities.cumsum(1) - probabilities;
    // The first token is kept whatever the rounding.
    at::Tensor beyond = before.ge(options.top_p);
    beyond.select(1, 0).fill_(false);
    sorted.masked_fill_(beyond, kNever);
  }
  const at::Tensor kept = sorted.softmax(1);
  return at::zeros_like(kept).scatter(1, order, kept).to(at::kFloat);
}

std::vector<std::vector<std::int64_t>> sample(Policy& policy,
                                              const std::vector<std::vector<std::int64_t>>& prompts,
                                              const SamplingOptions& options) {
  checked(options, "sampling");
  if (options.eos_id >= policy.vocab_size()) {
    throw ConfigError(fmt::format("sampling: expected eos_id below the vocabulary size {}, got {}",
                                  policy.vocab_size(), options.eos_id));
  }
  std::vector<std::vector<std::int64_t>> completions(prompts.size());
  if (prompts.empty()) return completions;

  const at::NoGradGuard no_grad;
  std::vector<std::mt19937_64> streams;
  for (std::int64_t i = 0; i < std::ssize(prompts); ++i) {
    streams.push_back(stream_of(options.seed, options.first_index + i));
  }
  std::vector<bool> finished(prompts.size(), false);
  // What goes back into the model; of finished sequences the value does not matter.
  std::vector<std::int64_t> next(prompts.size(), 0);

  const auto session = policy.start_decoding(prompts);
  at::Tensor logits = session->prefill();
  for (std::int64_t step = 0; step < options.max_new_tokens; ++step) {
    if (step > 0) {
      const at::Tensor tokens = at::from_blob(next.data(), {std::ssize(next)}, at::kLong).clone();
      logits = session->append(tokens.to(logits.device()));
    }
    const at::Tensor probabilities = sampling_probabilities(logits, options).cpu().contiguous();
    for (std::size_t s = 0; s < prompts.size(); ++s) {
      if (finished[s]) continue;
      const auto* row = probabilities.const_data_ptr<float>() +
                        static_cast<std::int64_t>(s) * probabilities.size(1);
      next[s] = draw(row, probabilities.size(1), uniform(streams[s]));
      completions[s].push_back(next[s]);
      finished[s] = next[s] == options.eos_id;
    }
    if (std::all_of(finished.begin(), finished.end(), [](bool done) { return done; })) break;
  }
  return completions;
}

}  // namespace prefopt
