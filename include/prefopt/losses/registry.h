// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/losses/loss.h"
#include "prefopt/options.h"

namespace prefopt {

struct LossEntry {
  LossInfo info = {};
  std::vector<FieldDoc> options = {};
  std::function<Loss(std::string_view options_json)> make = {};
};

/// Builds a loss from `{"type": NAME, options…}`, NAME that of a loss, an alias or a preset. TRL's
/// form `{"trainer": "CPOTrainer", "loss_type": NAME or list, options…}` gives the loss that TRL
/// 1.16 trains with these, by TRL's defaults; without `trainer` the keys decide on the trainer.
/// Throws ConfigError for an unknown type or key, naming the nearest known one, and for keys of two
/// trainers.
PREFOPT_API Loss make_loss(std::string_view config_json);

/// Returns the names in the order of registration.
PREFOPT_API std::vector<std::string> registered_losses();
/// Finds a loss by name, alias or preset. Throws ConfigError naming the nearest known one.
PREFOPT_API const LossEntry& find_loss(std::string_view name);
/// Registers a loss. Throws ConfigError if the name or an alias is taken.
PREFOPT_API void register_loss(LossEntry entry);

template <class L>
LossEntry loss_entry() {
  using Options = std::remove_cvref_t<decltype(std::declval<const L&>().options())>;
  return {.info = L::info(),
          .options = describe_options<Options>(),
          .make = [](std::string_view json) -> Loss {
            return L(options_from_json<Options>(json, L::info().name));
          }};
}

/// Makes `L` known to make_loss, the trainer and the command line under `L::info().name`.
template <class L>
void register_loss() {
  register_loss(loss_entry<L>());
}

}  // namespace prefopt
