// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/math/functions.h"

// Links, each with value and derivative: from scores (nats) to a per-pair loss. `T` is float,
// double, an Eigen array or a tensor. A link of the difference has value(delta) and
// derivative(delta) with delta = s_w - s_l. A link of both sides has value(w, l) and slopes(w, l).
namespace prefopt {

/// -a log sigmoid(z) - b log sigmoid(-z), z = beta delta - shift.
/// Derivative: beta (b sigmoid(z) - a sigmoid(-z)).
/// At z = 0: (a + b) log 2. Tends to -a z as z falls, to b z as it grows.
struct LogisticLink {
  double beta = 0.1;
  double a = 1;
  double b = 0;
  double shift = 0;

  template <class T>
  T value(const T& delta) const {
    const T z = argument(delta);
    if (b == 0) return -a * math::log_sigmoid(z);
    return -a * math::log_sigmoid(z) - b * math::log_sigmoid(T(-z));
  }

  template <class T>
  T derivative(const T& delta) const {
    const T z = argument(delta);
    return beta * (b * math::sigmoid(z) - a * math::sigmoid(T(-z)));
  }

  template <class T>
  T argument(const T& delta) const {
    return shift == 0 ? T(beta * delta) : T(beta * delta - shift);
  }
};

/// (delta - target)^2. Derivative: 2 (delta - target).
struct SquaredLink {
  double target = 0;

  template <class T>
  T value(const T& delta) const {
    return math::square(T(delta - target));
  }

  template <class T>
  T derivative(const T& delta) const {
    return 2 * (delta - target);
  }
};

/// max(0, 1 - beta delta). Derivative: -beta where beta delta < 1, else 0 (also at the kink).
struct HingeLink {
  double beta = 0.1;

  template <class T>
  T value(const T& delta) const {
    return math::relu(T(1 - beta * delta));
  }

  template <class T>
  T derivative(const T& delta) const {
    return -beta * math::is_positive(T(1 - beta * delta));
  }
};

/// KL between the Bernoulli distributions of sigmoid(z), z = beta delta, and of a target, a number
/// or one for each row: with q = sigmoid(z)
///   q (log q - log target) + (1 - q) (log(1 - q) - log(1 - target)).
/// Derivative in z: q (1 - q) (z - log(target / (1 - target))).
template <class Target>
struct BernoulliKlLink {
  double beta = 0.1;
  Target log_target = {};
  Target log_one_minus_target = {};

  template <class T>
  T value(const T& delta) const {
    const T z = beta * delta;
    const T minus_z = -z;
    return math::sigmoid(z) * (math::log_sigmoid(z) - log_target) +
           math::sigmoid(minus_z) * (math::log_sigmoid(minus_z) - log_one_minus_target);
  }

  template <class T>
  T derivative(const T& delta) const {
    const T z = beta * delta;
    return beta *
           (math::sigmoid(z) * math::sigmoid(T(-z)) * (z - (log_target - log_one_minus_target)));
  }
};

/// The links that a DeltaLink can be.
enum class DeltaLinkKind { kSigmoid, kHinge, kIpo };

/// One of three links, chosen when the loss is built: the logistic one with z = beta delta - gamma
/// and smoothed labels, the hinge, or the square around 1/(2 beta).
struct DeltaLink {
  DeltaLinkKind kind = DeltaLinkKind::kSigmoid;
  double beta = 0.1;
  double label_smoothing = 0;
  double gamma = 0;

  template <class T>
  T value(const T& delta) const {
    return visit([&](const auto& link) { return link.value(delta); });
  }

  template <class T>
  T derivative(const T& delta) const {
    return visit([&](const auto& link) { return link.derivative(delta); });
  }

 private:
  template <class Visitor>
  auto visit(const Visitor& visitor) const {
    switch (kind) {
      case DeltaLinkKind::kHinge:
        return visitor(HingeLink{beta});
      case DeltaLinkKind::kIpo:
        return visitor(SquaredLink{1 / (2 * beta)});
      default:
        return visitor(LogisticLink{beta, 1 - label_smoothing, label_smoothing, gamma});
    }
  }
};

/// Derivatives of a link of both sides.
template <class T>
struct BasicSlopes {
  T chosen;
  T rejected;
};

/// f(w) + g(l): each side by itself. `Side` has value(x) and derivative(x).
template <class ChosenLink, class RejectedLink>
struct SeparateLinks {
  ChosenLink chosen;
  RejectedLink rejected;

  template <class T>
  T value(const T& w, const T& l) const {
    return chosen.value(w) + rejected.value(l);
  }

  template <class T>
  BasicSlopes<T> slopes(const T& w, const T& l) const {
    return {chosen.derivative(w), rejected.derivative(l)};
  }
};

template <class ChosenLink, class RejectedLink>
SeparateLinks(ChosenLink, RejectedLink) -> SeparateLinks<ChosenLink, RejectedLink>;

/// weight * sigmoid(beta (x - center)), of either sign; `Center` a number or a 0-dim tensor.
/// Derivative: weight beta sigmoid(z) sigmoid(-z).
template <class Center = double>
struct SigmoidLink {
  double beta = 0.1;
  double weight = 1;
  Center center = {};

  template <class T>
  T value(const T& x) const {
    return weight * math::sigmoid(T(beta * (x - center)));
  }

  template <class T>
  T derivative(const T& x) const {
    const T z = beta * (x - center);
    return (weight * beta) * math::sigmoid(z) * math::sigmoid(T(-z));
  }
};

}  // namespace prefopt
