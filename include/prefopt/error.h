// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>

#include "prefopt/export.h"

namespace prefopt {

/// Base of all exceptions of prefopt. The text is one sentence: `where: expected X, got Y; hint`.
class PREFOPT_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An invalid option, key or combination of options.
class PREFOPT_API ConfigError : public Error {
 public:
  using Error::Error;
};

/// A tensor whose shape does not fit the others.
class PREFOPT_API ShapeError : public Error {
 public:
  using Error::Error;
};

/// A tensor whose dtype is not supported where it was given.
class PREFOPT_API DtypeError : public Error {
 public:
  using Error::Error;
};

/// Tensors on different devices, or a device that failed.
class PREFOPT_API DeviceError : public Error {
 public:
  using Error::Error;
};

/// A row or a data file that cannot be used; names file and line.
class PREFOPT_API DataError : public Error {
 public:
  using Error::Error;
};

/// A model folder or tensor file that cannot be read or written; names file and offset or field.
class PREFOPT_API CheckpointError : public Error {
 public:
  using Error::Error;
};

/// A loss or gradient that is not finite.
class PREFOPT_API NonFiniteError : public Error {
 public:
  using Error::Error;
};

}  // namespace prefopt
