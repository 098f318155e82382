// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/exact/preferences.h"
#include "prefopt/exact/random.h"

namespace prefopt::lab {

/// Three actions, each of which beats the next with its own probability in [0.6, 0.95): the
/// minimax winner takes all of them.
exact::Preferences random_cycle(exact::Random& random);

/// The same where the better action always wins.
exact::Preferences certain_cycle();

/// P(a beats b) = sigmoid(z), z standard normal for each two actions: without an order in general.
exact::Preferences random_game(exact::Random& random, exact::Index actions);

}  // namespace prefopt::lab
