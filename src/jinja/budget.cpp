// SPDX-License-Identifier: Apache-2.0
#include "jinja/budget.h"

#include "jinja/failure.h"

namespace prefopt::jinja {
namespace {

thread_local Budget* current = nullptr;

}  // namespace

Budget::Budget(std::size_t work) : left_(work), outer_(current) { current = this; }

Budget::~Budget() { current = outer_; }

void spend(std::size_t work) {
  if (current == nullptr) return;
  if (work > current->left_) {
    throw Failure("expected a template that comes to an end, got one that does too much work");
  }
  current->left_ -= work;
}

}  // namespace prefopt::jinja
