// SPDX-License-Identifier: Apache-2.0
#pragma once

// The arithmetic of one row of logits for host and device: C++17, no header of LibTorch or CUDA.
// A is float or double, the type of exponentials and of sums of a few of them.

#include <cmath>
#include <cstdint>
#include <limits>

#include "logps/kernels/statistics.h"

#ifdef __CUDACC__
#define PREFOPT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PREFOPT_HOST_DEVICE inline
#endif

namespace prefopt::kernels {

// Device code may use these, though not the functions that they come from.
template <class A>
inline constexpr A kInfinity = std::numeric_limits<A>::infinity();
template <class A>
inline constexpr A kLowest = std::numeric_limits<A>::lowest();
template <class A>
inline constexpr A kNan = std::numeric_limits<A>::quiet_NaN();

/// Exponentials are powers of two of z · log2 e, a multiply-add that rounds once.
template <class A>
inline constexpr A kLog2E = static_cast<A>(1.4426950408889634);

PREFOPT_HOST_DEVICE double exp2_of(double x) { return std::exp2(x); }

/// On GPUs, the hardware `ex2` unit (error 2^-22): the fix-ups of std::exp2 cost more than loading
/// the logit.
PREFOPT_HOST_DEVICE float exp2_of(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return std::exp2(x);
#endif
}

/// z = softcap · tanh(scale · u / softcap) / temperature, or scale · u / temperature where softcap
/// is 0.
template <class A>
class LogitMap {
 public:
  LogitMap(double scale, double softcap, double temperature)
      : capped_(softcap != 0),
        inner_(static_cast<A>(scale / (capped_ ? softcap : temperature))),
        outer_(static_cast<A>(softcap / temperature)),
        steepest_(static_cast<A>(scale / temperature)) {}

  PREFOPT_HOST_DEVICE A logit(A raw) const {
    A z[1] = {raw};
    map(z);
    return z[0];
  }

  /// Raw logits to z, in place.
  template <int n>
  PREFOPT_HOST_DEVICE void map(A (&logits)[n]) const {
    if (inner_ != 1) {
      for (int i = 0; i < n; ++i) logits[i] *= inner_;
    }
    if (!capped_) return;
    for (int i = 0; i < n; ++i) logits[i] = outer_ * std::tanh(logits[i]);
  }

  /// factor · dz/du. 1 - tanh², which would lose its digits near the cap, as 4 e / (1 + e)².
  template <int n>
  PREFOPT_HOST_DEVICE void multiply_by_slope(const A (&raw)[n], A (&factors)[n]) const {
    for (int i = 0; i < n; ++i) factors[i] *= steepest_;
    if (!capped_) return;
    for (int i = 0; i < n; ++i) {
      const A e = std::exp(-2 * std::fabs(raw[i] * inner_));
      factors[i] *= 4 * e / ((1 + e) * (1 + e));
    }
  }

 private:
  bool capped_;
  A inner_, outer_, steepest_;
};

/// Pairwise; n is a power of two.
template <class A, int n>
PREFOPT_HOST_DEVICE A sum_of(const A (&values)[n]) {
  A sums[n];
  for (int i = 0; i < n; ++i) sums[i] = values[i];
  for (int width = n / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
  }
  return sums[0];
}

/// Σ e^z over some logits of a row. `shift` trails the maximum by kSlack at most: the sums are
/// seldom rescaled then, which costs time and, on a row that rises slowly, digits.
template <class A>
struct SoftmaxSum {
  static constexpr A kSlack = 6;

  A max;       // of z
  A shift;     // in units of log 2
  double sum;  // of 2^y, where y = z log2 e - shift

  /// The sum of nothing. Its shift, unlike minus infinity, can be subtracted from minus infinity.
  PREFOPT_HOST_DEVICE static SoftmaxSum none() { return {-kInfinity<A>, kLowest<A>, 0}; }

  PREFOPT_HOST_DEVICE double shift_in_nats() const {
    return static_cast<double>(shift) / static_cast<double>(kLog2E<A>);
  }

  PREFOPT_HOST_DEVICE void rescale(double factor, double) { sum *= factor; }

  template <int n>
  PREFOPT_HOST_DEVICE void take(const A (&)[n], const A (&powers)[n], A) {
    sum += static_cast<double>(sum_of(powers));
  }

  PREFOPT_HOST_DEVICE void add(const SoftmaxSum& other) {
    max = std::fmax(max, other.max);
    sum += other.sum;
  }
};

/// The same with the moments that the by-products need.
template <class A>
struct SoftmaxMoments : SoftmaxSum<A> {
  double total;    // of z
  double tilted;   // of y 2^y
  double squared;  // of 2^2y

  PREFOPT_HOST_DEVICE static SoftmaxMoments none() { return {SoftmaxSum<A>::none(), 0, 0, 0}; }

  PREFOPT_HOST_DEVICE void rescale(double factor, double lowered) {
    tilted = factor * (tilted + lowered * this->sum);
    squared *= factor * factor;
    SoftmaxSum<A>::rescale(factor, lowered);
  }

  template <int n>
  PREFOPT_HOST_DEVICE void take(const A (&y)[n], const A (&powers)[n], A sum_of_z) {
    SoftmaxSum<A>::take(y, powers, sum_of_z);
    A products[n], squares[n];
    for (int i = 0; i < n; ++i) {
      products[i] = std::fmax(y[i], kLowest<A>) * powers[i];
      squares[i] = powers[i] * powers[i];
    }
    total += static_cast<double>(sum_of_z);
    tilted += static_cast<double>(sum_of(products));
    squared += static_cast<double>(sum_of(squares));
  }

  PREFOPT_HOST_DEVICE void add(const SoftmaxMoments& other) {
    SoftmaxSum<A>::add(other);
    total += other.total;
    tilted += other.tilted;
    squared += other.squared;
  }
};

/// Makes the sums relative to `shift`, not below their own.
template <class State, class A>
PREFOPT_HOST_DEVICE void rebase(State& state, A shift) {
  state.rescale(static_cast<double>(exp2_of(state.shift - shift)),
                static_cast<double>(state.shift) - static_cast<double>(shift));
  state.shift = shift;
}

/// Adds logits and their sum, given separately for excluded logits: they are -inf in z and 0 in the
/// sum.
template <class State, class A, int n>
PREFOPT_HOST_DEVICE void push(State& state, const A (&z)[n], A sum_of_z) {
  A top = z[0];
  for (int i = 1; i < n; ++i) top = std::fmax(top, z[i]);
  state.max = std::fmax(state.max, top);
  const A highest = top * kLog2E<A>;
  if (highest > state.shift + State::kSlack) rebase(state, highest);
  A y[n], powers[n];
  for (int i = 0; i < n; ++i) {
    y[i] = std::fma(z[i], kLog2E<A>, -state.shift);
    powers[i] = exp2_of(y[i]);
  }
  state.take(y, powers, sum_of_z);
}

/// Excludes the logits whose bit is not set in `present`; returns the sum of the others.
template <class A, int n>
PREFOPT_HOST_DEVICE A mask(A (&z)[n], unsigned present) {
  A addends[n];
  for (int i = 0; i < n; ++i) {
    const bool is_present = (present >> i & 1u) != 0;
    addends[i] = is_present ? z[i] : A(0);
    if (!is_present) z[i] = -kInfinity<A>;
  }
  return sum_of(addends);
}

template <class State>
PREFOPT_HOST_DEVICE State merge(State a, State b) {
  const auto shift = std::fmax(a.shift, b.shift);
  rebase(a, shift);
  rebase(b, shift);
  a.add(b);
  return a;
}

/// A whole row: the target, and all others in `factor` times their sums. That the target is apart
/// lets the log-prob and the gradient of a sure token (all others together 1e-9, say) keep their
/// digits.
struct WholeSum {
  double shift, own, factor, rest, log_sum;

  template <class A>
  PREFOPT_HOST_DEVICE WholeSum(const SoftmaxSum<A>& others, double target)
      : shift(std::fmax(others.shift_in_nats(), target)),
        own(std::exp(target - shift)),
        factor(std::exp(others.shift_in_nats() - shift)),
        rest(factor * others.sum),
        log_sum(log_of(own, rest)) {}

  /// log(own + rest), where own may be 1 and rest far below.
  PREFOPT_HOST_DEVICE static double log_of(double own, double rest) {
    return own == 1 ? std::log1p(rest) : std::log(own + rest);
  }

  template <class A>
  PREFOPT_HOST_DEVICE void write(const SoftmaxSum<A>& others, double target,
                                 double* statistics) const {
    statistics[kLogp] = (target - shift) - log_sum;
    statistics[kLogsumexp] = shift + log_sum;
    statistics[kIsTop1] = target >= static_cast<double>(others.max) ? 1 : 0;
  }
};

/// Statistics of a row of `size` logits, of which `others` holds all but the target. A logit that
/// is NaN or +inf, or above 2e38 in float, makes the log-prob NaN.
template <class A>
PREFOPT_HOST_DEVICE void finish(const SoftmaxSum<A>& others, double target, std::int64_t,
                                double* statistics) {
  WholeSum(others, target).write(others, target, statistics);
}

template <class A>
PREFOPT_HOST_DEVICE void finish(const SoftmaxMoments<A>& others, double target, std::int64_t size,
                                double* statistics) {
  const WholeSum row(others, target);
  row.write(others, target, statistics);
  const double lowered = others.shift_in_nats() - row.shift;
  const double nats = others.tilted / static_cast<double>(kLog2E<A>);
  const double tilted = row.factor * (nats + lowered * others.sum) +
                        (row.own > 0 ? (target - row.shift) * row.own : 0);
  const double squared = row.factor * row.factor * others.squared;
  statistics[kEntropy] = row.log_sum - tilted / (row.own + row.rest);
  statistics[kMeanLogit] = (others.total + target) / static_cast<double>(size);
  statistics[kLogSumPSquared] = WholeSum::log_of(row.own * row.own, squared) - 2 * row.log_sum;
}

/// The gradient of raw logits u with the factors of statistics.h, where p = e^(z - logsumexp): that
/// of z times dz/du.
template <class A>
class RowGradient {
 public:
  PREFOPT_HOST_DEVICE RowGradient(const LogitMap<A>& map, double logsumexp,
                                  const RowFactors& factors)
      : map_(map),
        logsumexp_(logsumexp),
        of_target_(static_cast<A>(factors.of_target)),
        of_p_(static_cast<A>(factors.of_p)),
        of_p_log_p_(static_cast<A>(factors.of_p_log_p)),
        excess_(static_cast<A>(factors.of_p - factors.of_target)) {
    // In units of log 2, and as two numbers: a large one has no digits left behind the point.
    constexpr double kUnit = static_cast<double>(kLog2E<A>);
    high_ = static_cast<A>(logsumexp * kUnit);
    low_ = static_cast<A>(std::fma(logsumexp, kUnit, -static_cast<double>(high_)));
  }

  template <int n>
  PREFOPT_HOST_DEVICE void of_others(const A (&raw)[n], A (&gradient)[n]) const {
    for (int i = 0; i < n; ++i) gradient[i] = raw[i];
    map_.map(gradient);
    // log p in units of log 2.
    for (int i = 0; i < n; ++i) gradient[i] = std::fma(gradient[i], kLog2E<A>, -high_) - low_;
    if (of_p_log_p_ == 0) {
      for (int i = 0; i < n; ++i) gradient[i] = -of_p_ * exp2_of(gradient[i]);
    } else {
      const A of_p_log2_p = of_p_log_p_ / kLog2E<A>;
      for (int i = 0; i < n; ++i) {
        const A p = exp2_of(gradient[i]);
        // 0 log 0 is 0.
        gradient[i] = -of_p_ * p - of_p_log2_p * (p * std::fmax(gradient[i], kLowest<A>));
      }
    }
    map_.multiply_by_slope(raw, gradient);
  }

  /// 1 - p as -expm1(log p): exact also where p is nearly 1.
  PREFOPT_HOST_DEVICE A of_target(A raw) const {
    const auto log_p = static_cast<A>(static_cast<double>(map_.logit(raw)) - logsumexp_);
    const A raws[1] = {raw};
    A gradient[1] = {-of_target_ * std::expm1(log_p)};
    if (excess_ != 0 || of_p_log_p_ != 0) {
      const A p = std::exp(log_p);
      gradient[0] -= excess_ * p + of_p_log_p_ * (p * std::fmax(log_p, kLowest<A>));
    }
    map_.multiply_by_slope(raws, gradient);
    return gradient[0];
  }

 private:
  LogitMap<A> map_;
  double logsumexp_;
  A high_, low_;
  A of_target_, of_p_, of_p_log_p_;
  A excess_;  // of_p - of_target, from float64
};

}  // namespace prefopt::kernels
