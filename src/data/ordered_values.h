// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"

namespace prefopt::detail {

/// The objects of a line with their keys in the order of the file, which templates write them in.
/// Rows are read into objects of sorted keys, whose order is found again by their content.
class OrderedValues {
 public:
  /// Also takes the objects in texts that are JSON. Throws JsonDefect for what is no JSON.
  explicit OrderedValues(std::string_view line);

  /// Returns the value with the keys of its objects in the order of the line; those that are not in
  /// it keep theirs. Throws JsonDefect where the line has one object in two orders.
  Json ordered(const SortedJson& value) const;

 private:
  void add(const Json& value);

  struct Known {
    Json value;
    bool is_ambiguous = false;
  };
  std::map<std::string, Known> objects_;
};

}  // namespace prefopt::detail
