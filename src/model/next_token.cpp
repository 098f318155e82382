// SPDX-License-Identifier: Apache-2.0
#include "model/next_token.h"

#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/parallel.h"
#include "logps/kernels/cpu/gemm.h"
#include "model/kernels/cpu/next_token.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

namespace cpu = kernels::cpu;

// The `count` highest logits, highest first; of equal ones the smaller index counts as the more
// likely one.
template <class T>
std::vector<std::int64_t> most_likely(const T* logits, std::int64_t size, std::int64_t count) {
  const auto before = [logits](std::int64_t a, std::int64_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  };
  count = std::min(count, size);
  std::vector<std::int64_t> best;
  const auto keep_count = [&] {
    std::nth_element(best.begin(), best.begin() + (count - 1), best.end(), before);
    best.resize(static_cast<std::size_t>(count));
  };
  // Few logits get past the `count` best so far, and an equal one comes too late.
  T threshold{};
  bool has_threshold = false;
  for (std::int64_t i = 0; i < size; ++i) {
    if (has_threshold && !(logits[i] > threshold)) continue;
    best.push_back(i);
    if (std::ssize(best) < 2 * count) continue;
    keep_count();
    threshold = logits[best.back()];
    has_threshold = true;
  }
  keep_count();
  std::sort(best.begin(), best.end(), before);
  return best;
}

// The place of the first weight whose cumulative sum exceeds `target`; rounding may leave none,
// then the last one that is not 0.
template <class T>
std::int64_t place_of(const T* weights, std::int64_t size, double target) {
  double cumulative = 0;
  std::int64_t last_possible = 0;
  for (std::int64_t i = 0; i < size; ++i) {
    if (weights[i] == 0) continue;
    cumulative += static_cast<double>(weights[i]);
    last_possible = i;
    if (cumulative > target) return i;
  }
  return last_possible;
}

double sum_of(const std::vector<double>& numbers) {
  return std::accumulate(numbers.begin(), numbers.end(), 0.0);
}

/// What the next token is drawn from: a row of logits after temperature, top-k and top-p.
template <class T>
class NextToken {
 public:
  NextToken(const T* logits, std::int64_t size, const SamplingOptions& options);

  /// The row's highest logit, or NaN. Where it is not finite there is no distribution.
  T highest() const { return highest_; }
  /// The first token whose cumulative probability exceeds `share`, in [0, 1).
  std::int64_t draw(double share) const;
  /// Fills a row [size].
  void write_probabilities(float* out) const;

 private:
  bool is_limited(std::int64_t top_k) const { return top_k > 0 && top_k < size_; }
  void keep_all(double temperature);
  void keep_most_likely(const SamplingOptions& options);
  std::vector<double> weights_of(const std::vector<std::int64_t>& tokens, double temperature) const;

  const T* logits_;
  std::int64_t size_;
  T highest_;
  /// Tokens that are kept, ascending, and their weights; without tokens the weights are of all.
  std::vector<std::int64_t> tokens_;
  std::vector<double> weights_;
  cpu::Buffer<T> all_weights_;
  std::vector<double> sums_;  ///< of parts of all_weights_
};

template <class T>
NextToken<T>::NextToken(const T* logits, std::int64_t size, const SamplingOptions& options)
    : logits_(logits), size_(size), highest_(cpu::highest_logit(logits, size)) {
  if (!std::isfinite(highest_)) return;
  if (options.temperature == 0) {
    tokens_ = {std::find(logits, logits + size, highest_) - logits};
    weights_ = {1};
  } else if (!is_limited(options.top_k) && options.top_p == 1) {
    keep_all(options.temperature);
  } else {
    keep_most_likely(options);
  }
}

template <class T>
void NextToken<T>::keep_all(double temperature) {
  all_weights_ = cpu::Buffer<T>(size_);
  sums_.resize(static_cast<std::size_t>((size_ + cpu::kWeightsOfSum - 1) / cpu::kWeightsOfSum));
  cpu::token_weights(logits_, size_, highest_, temperature, all_weights_.data(), sums_.data());
}

template <class T>
std::vector<double> NextToken<T>::weights_of(const std::vector<std::int64_t>& tokens,
                                             double temperature) const {
  std::vector<double> weights;
  for (const std::int64_t token : tokens) {
    const double below = static_cast<double>(logits_[token]) - static_cast<double>(highest_);
    weights.push_back(std::exp(below / temperature));
  }
  return weights;
}

template <class T>
void NextToken<T>::keep_most_likely(const SamplingOptions& options) {
  const bool limited = is_limited(options.top_k);
  double total = 0;
  if (!limited) {
    keep_all(options.temperature);
    total = sum_of(sums_);
  }
  // How many tokens top-p leaves is not known before they are sorted: most often few.
  constexpr std::int64_t kFirstCount = 64, kGrowth = 8;
  for (std::int64_t count = limited ? options.top_k : kFirstCount;; count *= kGrowth) {
    tokens_ = most_likely(logits_, size_, count);
    weights_ = weights_of(tokens_, options.temperature);
    if (limited) total = sum_of(weights_);
    // The first token is kept whatever the rounding.
    std::size_t kept = 1;
    double before = weights_.front();
    while (kept < tokens_.size() && (options.top_p == 1 || before < options.top_p * total)) {
      before += weights_[kept++];
    }
    if (kept < tokens_.size() || limited || std::ssize(tokens_) == size_) {
      tokens_.resize(kept);
      break;
    }
  }
  std::sort(tokens_.begin(), tokens_.end());
  weights_ = weights_of(tokens_, options.temperature);
}

template <class T>
std::int64_t NextToken<T>::draw(double share) const {
  if (!tokens_.empty()) {
    const std::int64_t place =
        place_of(weights_.data(), std::ssize(weights_), share * sum_of(weights_));
    return tokens_[static_cast<std::size_t>(place)];
  }
  double target = share * sum_of(sums_);
  std::int64_t part = place_of(sums_.data(), std::ssize(sums_), target);
  for (std::int64_t i = 0; i < part; ++i) target -= sums_[static_cast<std::size_t>(i)];
  const std::int64_t first = part * cpu::kWeightsOfSum;
  return first +
         place_of(all_weights_.data() + first, std::min(cpu::kWeightsOfSum, size_ - first), target);
}

template <class T>
void NextToken<T>::write_probabilities(float* out) const {
  if (tokens_.empty()) {
    const double total = sum_of(sums_);
    for (std::int64_t i = 0; i < size_; ++i) {
      out[i] = static_cast<float>(static_cast<double>(all_weights_.data()[i]) / total);
    }
    return;
  }
  std::fill_n(out, size_, 0.0f);
  const double total = sum_of(weights_);
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    out[tokens_[i]] = static_cast<float>(weights_[i] / total);
  }
}

// A row may hold -inf (a token that cannot come), but neither NaN nor +inf, nor -inf only.
void check_highest(const std::vector<double>& highest) {
  for (std::size_t s = 0; s < highest.size(); ++s) {
    if (!std::isfinite(highest[s])) {
      throw NonFiniteError(fmt::format(
          "sampling: expected finite logits, got {} as the highest of sequence {}", highest[s], s));
    }
  }
}

/// Calls use(row, next token) for each row that has a distribution, on all threads.
template <class T, class Use>
void for_each_row(const at::Tensor& logits, const SamplingOptions& options, const Use& use) {
  const std::int64_t size = logits.size(1);
  std::vector<double> highest(static_cast<std::size_t>(logits.size(0)));
  parallel_for(0, logits.size(0), 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      const NextToken<T> next(logits.const_data_ptr<T>() + row * size, size, options);
      highest[static_cast<std::size_t>(row)] = static_cast<double>(next.highest());
      if (std::isfinite(next.highest())) use(row, next);
    }
  });
  check_highest(highest);
}

template <class Use>
void for_each_row_of(const at::Tensor& logits, const SamplingOptions& options, const Use& use) {
  if (logits.scalar_type() == at::kDouble) {
    for_each_row<double>(logits, options, use);
  } else {
    for_each_row<float>(logits, options, use);
  }
}

}  // namespace

std::vector<std::int64_t> draw_tokens(const at::Tensor& logits, const SamplingOptions& options,
                                      std::span<const double> shares) {
  std::vector<std::int64_t> tokens(shares.size());
  for_each_row_of(logits, options, [&](std::int64_t row, const auto& next) {
    const auto i = static_cast<std::size_t>(row);
    tokens[i] = next.draw(shares[i]);
  });
  return tokens;
}

at::Tensor token_probabilities(const at::Tensor& logits, const SamplingOptions& options) {
  at::Tensor probabilities = at::zeros(logits.sizes(), at::kFloat);
  for_each_row_of(logits, options, [&](std::int64_t row, const auto& next) {
    next.write_probabilities(probabilities.mutable_data_ptr<float>() + row * logits.size(1));
  });
  return probabilities;
}

}  // namespace prefopt::detail
