// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"

namespace prefopt::detail {

/// A key of a TRL trainer's config that shapes its loss.
struct TrlKey {
  std::string_view name;
  std::string_view option;    ///< ours that it sets
  std::string_view fallback;  ///< TRL's default, as JSON
  /// TRL applies it to all losses of a list, so that none may be without it.
  bool for_all = false;
};

/// One `loss_type` of a trainer.
struct TrlLoss {
  std::string_view name;
  std::string config;                   ///< ours, as JSON: the type and the options of the name
  std::vector<std::string_view> reads;  ///< keys
  std::vector<std::string_view> ignores = {};  ///< keys that TRL lets be anything
};

/// A trainer of TRL 1.16. Its config may hold these keys, `loss_type`, and of a trainer that takes
/// lists `loss_weights`.
struct TrlTrainer {
  std::string_view name = {};
  std::string_view config_name = {};
  std::vector<TrlKey> keys;
  std::vector<TrlLoss> losses;  ///< the first is the default
  bool takes_lists = false;
  /// Turns values of TRL's into ours where the option alone does not say it; null: nothing to do.
  void (*finish)(Json& loss) = nullptr;

  const TrlKey* key(std::string_view key_name) const;
  const TrlLoss* loss(std::string_view loss_name) const;
};

/// In the order in which a config that fits several is taken for one of them.
const std::vector<TrlTrainer>& trl_trainers();

}  // namespace prefopt::detail
