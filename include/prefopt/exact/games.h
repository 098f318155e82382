// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/exact/policy.h"
#include "prefopt/exact/preferences.h"
#include "prefopt/export.h"

// Preferences as a game: two players name an action each for a prompt, and one wins P(a beats b) of
// the time. Policies are tables of log-probs [actions, prompts], each prompt a game by itself;
// numbers are means over prompts. Tables have to agree in shape (ShapeError). Preferences need not
// come from rewards: a cycle has an equilibrium as well.
//
// Steps are the exact updates of self-play methods. `step` multiplies win rates: eta of Nash-MD and
// SPPO, 1/eta of INPO, DNO and SPO.
namespace prefopt::exact {

/// Returns P(y beats pi | x) = sum_y' P(y beats y' | x) pi(y'|x).
PREFOPT_API Table win_rates(const Table& logps, const Preferences& preferences);

/// Returns max_y P(y beats pi) - 1/2, what the best reply gains: 0 for a minimax winner alone.
PREFOPT_API double exploitability(const Table& logps, const Preferences& preferences);

/// Returns P_tau(p beats q) = P(p beats q) - tau KL(p || ref) + tau KL(q || ref), ref being the
/// paper's mu (2312.00886 eq. 2).
PREFOPT_API double regularized_win_rate(const Table& p, const Table& q, const Table& ref,
                                        const Preferences& preferences, double tau);

/// Returns max_p P_tau(p beats pi) - min_p P_tau(pi beats p): 0 for the equilibrium of P_tau alone.
/// The best reply has value tau log sum_y ref(y) e^(P(y beats pi) / tau), so that nothing is
/// searched for. Throws ConfigError unless tau > 0.
PREFOPT_API double duality_gap(const Table& logps, const Table& ref, const Preferences& preferences,
                               double tau);

struct EquilibriumOptions {
  double tolerance = 1e-13;  ///< stop where no log-prob is farther from its best reply
  int max_iterations = 1'000'000;
};

struct Equilibrium {
  Table logps;
  double residual = 0;  ///< largest |log pi - log of the best reply to pi|, nats
  int iterations = 0;
  bool converged = false;  ///< residual is within the tolerance
};

/// Returns the equilibrium of P_tau, the one policy with pi ~ ref e^(P(. beats pi) / tau)
/// (2312.00886, proposition 1). Iterates log pi <- (1 - d) log pi + d log reply(pi); with b the
/// largest |P - 1/2|, d = 1 / (1 + (b / tau)^2) is the damping with the fastest bound on the
/// rotation of a cycle. Throws ConfigError unless tau > 0.
PREFOPT_API Equilibrium equilibrium(const Table& ref, const Preferences& preferences, double tau,
                                    const EquilibriumOptions& options = {});

/// Returns a minimax winner (von Neumann winner): no action beats it more than half the time, so
/// that its exploitability is 0. By the simplex method, to rounding; log-probs are -inf where it
/// never goes. Where there are several, one of them.
PREFOPT_API Table minimax_winner(const Preferences& preferences);

/// Returns pi' ~ pi e^(step P(. beats pi)): multiplicative weights, the exact round of SPO
/// (2401.04056) and DNO (2404.03715 eq. 8). Throws ConfigError unless step > 0.
PREFOPT_API Table multiplicative_weights_step(const Table& logps, const Preferences& preferences,
                                              double step);

/// Returns pi' ~ pi^(1 - step tau) ref^(step tau) e^(step P(. beats pi)): online mirror descent,
/// INPO's exact round (2407.00617 eq. 4 and 5, eta = 1 / step). Throws ConfigError unless step > 0
/// and 0 <= step tau <= 1.
PREFOPT_API Table mirror_descent_step(const Table& logps, const Table& ref,
                                      const Preferences& preferences, double tau, double step);

/// Returns Nash-MD's exact round (2312.00886 eq. 3 to 5): with the mixture
///   m ~ pi^(1 - step tau) ref^(step tau)
/// the policy pi' ~ m e^(step P(. beats m)). Throws as mirror_descent_step does.
PREFOPT_API Table nash_md_step(const Table& logps, const Table& ref, const Preferences& preferences,
                               double tau, double step);

/// Returns SPPO's exact round (2405.00675 eq. 4.7): the normalized policy that minimizes
///   E_{y ~ pi} (log pi'(y) / pi(y) - step (P(y beats pi) - 1/2))^2
/// which is multiplicative weights with a constant in place of log Z. Throws ConfigError unless
/// step > 0.
PREFOPT_API Table sppo_step(const Table& logps, const Preferences& preferences, double step);

/// Returns pi ~ now (now / before)^alpha, the second step of accelerated preference optimization
/// (2410.06293 algorithm 1, as secondary notes have it). Throws ConfigError unless 0 <= alpha < 1,
/// ShapeError for tables that differ in shape.
PREFOPT_API Table extrapolated(const Table& now, const Table& before, double alpha);

}  // namespace prefopt::exact
