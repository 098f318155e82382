// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <string>
#include <typeinfo>

#include "support/catch.h"

namespace prefopt::testing_support {

/// The text of `thrown` if it is exactly an `E`, else what came instead.
template <class E>
std::string thrown_text(std::exception_ptr thrown) {
  if (!thrown) return "(nothing thrown)";
  try {
    std::rethrow_exception(thrown);
  } catch (const std::exception& error) {
    if (typeid(error) == typeid(E)) return error.what();
    return std::string("(a ") + typeid(error).name() + ") " + error.what();
  } catch (...) {
    return "(not a std::exception)";
  }
}

}  // namespace prefopt::testing_support

/// Checks that `expression` throws an `ErrorType`, not a class derived from it, with exactly
/// `text`.
#define CHECK_THROWS_TEXT(expression, ErrorType, text)                          \
  do {                                                                          \
    std::exception_ptr prefopt_thrown;                                          \
    try {                                                                       \
      static_cast<void>(expression);                                            \
    } catch (...) {                                                             \
      prefopt_thrown = std::current_exception();                                \
    }                                                                           \
    CHECK(::prefopt::testing_support::thrown_text<ErrorType>(prefopt_thrown) == \
          std::string(text));                                                   \
  } while (false)
