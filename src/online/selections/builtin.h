// SPDX-License-Identifier: Apache-2.0
#pragma once

// The list of selections; a new one is a header here and a name in the list.

#include "online/selections/advantage.h"
#include "online/selections/against_data.h"
#include "online/selections/all_pairs.h"
#include "online/selections/best_against.h"
#include "online/selections/best_of.h"
#include "online/selections/pair.h"
#include "online/selections/rejection.h"
#include "online/selections/siblings.h"
#include "online/selections/tournament.h"
#include "online/selections/win_rates.h"

namespace prefopt::detail {

template <class... S>
struct SelectionList {};

using BuiltinSelections =
    SelectionList<PairSelection, BestWorstSelection, BestRandomSelection, BestSecondSelection,
                  TournamentSelection, AllPairsSelection, RejectionSelection, WinRateSelection,
                  AdvantageSelection, BestOfSelection, AgainstDataSelection, SiblingsSelection>;

}  // namespace prefopt::detail
