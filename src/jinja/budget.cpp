// SPDX-License-Identifier: Apache-2.0
#include "jinja/budget.h"

#include "jinja/failure.h"

namespace prefopt::jinja {
namespace {

thread_local Budget* current_budget = nullptr;

}  // namespace

Budget::Budget(std::size_t work) : left_(work), outer_(current_budget) { current_budget = this; }

Budget::~Budget() { current_budget = outer_; }

void spend(std::size_t work) {
  if (current_budget == nullptr) return;
  if (work > current_budget->left_) {
    throw Failure("expected a template that comes to an end, got one that does too much work");
  }
  current_budget->left_ -= work;
}

}  // namespace prefopt::jinja
