// SPDX-License-Identifier: Apache-2.0
#include "policy/next_token.h"

#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/parallel.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/next_token.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

namespace cpu = kernels::cpu;

template <class T>
struct Candidate {
  std::int64_t token;
  T logit;
  double weight;
};

// Of equal logits the smaller index counts as the more likely one.
template <class T>
bool is_more_likely(const Candidate<T>& a, const Candidate<T>& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// Returns the `count` highest logits, in any order.
template <class T>
std::vector<Candidate<T>> most_likely(const T* logits, std::int64_t size, std::int64_t count) {
  std::vector<Candidate<T>> best;
  const auto keep_count = [&] {
    std::nth_element(best.begin(), best.begin() + (count - 1), best.end(), is_more_likely<T>);
    best.resize(static_cast<std::size_t>(count));
  };
  // Few logits get past the `count` best so far, and an equal one comes too late.
  T least{};
  bool is_full = false;
  for (std::int64_t i = 0; i < size; ++i) {
    if (is_full && !(logits[i] > least)) continue;
    best.push_back({i, logits[i], 0});
    if (std::ssize(best) < 2 * count) continue;
    keep_count();
    least = best.back().logit;
    is_full = true;
  }
  keep_count();
  return best;
}

// Keeps the most likely ones, as many as have less than `mass` before them: the first one whatever
// the rounding. A binary search for the last one that sorts no more than it has to.
template <class T>
void keep_mass(std::vector<Candidate<T>>& candidates, double mass) {
  std::int64_t last = 0, end = std::ssize(candidates);
  double before_last = 0;
  while (end - last > 1) {
    const std::int64_t middle = last + (end - last) / 2;
    const auto begin = candidates.begin();
    std::nth_element(begin + last, begin + middle, begin + end, is_more_likely<T>);
    double before = before_last;
    for (std::int64_t i = last; i < middle; ++i) {
      before += candidates[static_cast<std::size_t>(i)].weight;
    }
    if (before < mass) {
      last = middle;
      before_last = before;
    } else {
      end = middle;
    }
  }
  candidates.resize(static_cast<std::size_t>(end));
}

// Returns the place of the first weight whose cumulative sum exceeds `target`; rounding may leave
// none, then the last one that is not 0.
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

/// The distribution of the next token: a row of logits after temperature, top-k and top-p.
template <class T>
class NextToken {
 public:
  NextToken(const T* logits, std::int64_t size, const SamplingOptions& options);

  /// Returns the row's highest logit, or NaN. Where it is not finite there is no distribution.
  T highest() const { return highest_; }
  /// Returns the first token whose cumulative probability exceeds `share`, in [0, 1).
  std::int64_t draw(double share) const;
  /// Fills a row [size].
  void write_probabilities(float* out) const;

 private:
  bool is_limited(std::int64_t top_k) const { return top_k > 0 && top_k < size_; }
  void keep_all(double temperature);
  void keep_most_likely(const SamplingOptions& options);
  std::vector<Candidate<T>> likely_enough(double top_p) const;

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

// All that can be among the most likely tokens that together reach top_p: those that weigh less
// than (1 − top_p) / size of all are too light to be missed together. Half of that leaves room for
// rounding.
template <class T>
std::vector<Candidate<T>> NextToken<T>::likely_enough(double top_p) const {
  const T* weights = all_weights_.data();
  const auto least = static_cast<T>(0.5 * (1 - top_p) * sum_of(sums_) / static_cast<double>(size_));
  std::vector<Candidate<T>> candidates;
  for (std::int64_t i = 0; i < size_; ++i) {
    if (weights[i] < least) continue;
    candidates.push_back({i, logits_[i], static_cast<double>(weights[i])});
  }
  return candidates;
}

template <class T>
void NextToken<T>::keep_most_likely(const SamplingOptions& options) {
  std::vector<Candidate<T>> candidates;
  double total = 0;
  if (is_limited(options.top_k)) {
    candidates = most_likely(logits_, size_, options.top_k);
    for (Candidate<T>& candidate : candidates) {
      const double below = static_cast<double>(candidate.logit) - static_cast<double>(highest_);
      candidate.weight = std::exp(below / options.temperature);
      total += candidate.weight;
    }
  } else {
    keep_all(options.temperature);
    candidates = likely_enough(options.top_p);
    total = sum_of(sums_);
  }
  if (options.top_p < 1) keep_mass(candidates, options.top_p * total);
  std::sort(candidates.begin(), candidates.end(),
            [](const auto& a, const auto& b) { return a.token < b.token; });
  for (const Candidate<T>& candidate : candidates) {
    tokens_.push_back(candidate.token);
    weights_.push_back(candidate.weight);
  }
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
