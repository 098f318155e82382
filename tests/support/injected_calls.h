// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/system_calls.h"

namespace prefopt::testing_support {

/// Puts the system's calls back at the end of its scope.
class InjectedCalls {
 public:
  InjectedCalls() = default;
  ~InjectedCalls() { detail::system_calls() = before_; }
  InjectedCalls(const InjectedCalls&) = delete;
  InjectedCalls& operator=(const InjectedCalls&) = delete;

  detail::SystemCalls* operator->() { return &detail::system_calls(); }

 private:
  detail::SystemCalls before_ = detail::system_calls();
};

}  // namespace prefopt::testing_support
