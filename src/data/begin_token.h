// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "prefopt/data/tokenizer.h"

namespace prefopt::detail {

/// A tokenizer that knows the begin token also where texts begin without it: templates write it.
class HasBeginToken {
 public:
  virtual ~HasBeginToken() = default;
  virtual std::int64_t begin_id() const = 0;  ///< -1: no such token
};

inline std::int64_t begin_id_of(const Tokenizer& tokenizer) {
  const auto* known = dynamic_cast<const HasBeginToken*>(&tokenizer);
  return known != nullptr ? known->begin_id() : tokenizer.bos_id();
}

}  // namespace prefopt::detail
