// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "prefopt/losses/loss.h"
#include "prefopt/options.h"

namespace prefopt {

/// Facts about a piece of a token objective, for the registry and the documentation.
struct PieceInfo {
  std::string kind = {};
  std::string formula = {};
  std::string source = {};  ///< arXiv id and equation
  std::vector<OtherImplementation> elsewhere = {};
};

/// A registered kind of piece.
struct PieceEntry {
  PieceInfo info = {};
  std::vector<FieldDoc> options = {};
};

/// Options of a piece that has none.
struct NoOptions {
  void fields(FieldVisitor&) {}
};

}  // namespace prefopt
