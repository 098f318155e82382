// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace prefopt::jinja {

/// The work that a render on this thread may do, from its beginning to its end: a template is a
/// program, and a file may hold any.
class Budget {
 public:
  explicit Budget(std::size_t work);
  ~Budget();
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;

 private:
  friend void spend(std::size_t work);
  std::size_t left_;
  Budget* outer_;
};

/// Takes from the budget of this thread, if it has one: a unit is about a step of a loop, a value
/// that is looked at, or 64 bytes of text. Throws Failure where nothing is left.
void spend(std::size_t work);

}  // namespace prefopt::jinja
