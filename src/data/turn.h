// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "core/json.h"
#include "prefopt/data/records.h"

namespace prefopt::detail {

/// A message with what else its file says of it: calls, reasoning, names. Chat formats write the
/// message alone; a template may read all.
struct Turn : Message {
  Turn(std::string role_given, std::string content_given, bool counts_given = true)
      : Message{std::move(role_given), std::move(content_given), counts_given} {}
  Json fields = Json::object();
  /// The kind of content that the file has. Chat formats write no text for either of the last two.
  enum class ContentKind { kText, kNull, kNone };
  ContentKind content_kind = ContentKind::kText;
  std::size_t begun = kNotBegun;  ///< bytes of the content before what continues the turn

  static constexpr std::size_t kNotBegun = static_cast<std::size_t>(-1);
};

using Turns = std::vector<Turn>;

}  // namespace prefopt::detail
