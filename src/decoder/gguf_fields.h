// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "decoder/strict_config.h"
#include "prefopt/files/gguf.h"
#include "prefopt/files/gguf_writer.h"

namespace prefopt::detail {

/// Metadata of a GGUF file's architecture, named without "ARCHITECTURE." in front.
class GgufFields : public StrictFile {
 public:
  /// Keeps a reference to `file`.
  explicit GgufFields(const GgufFile& file);

  const GgufFile& file() const { return file_; }
  const std::string& architecture() const { return architecture_; }

  /// Refuses names that are not known and values other than the required ones.
  void check(const KnownFields& known) const;

  std::string key(std::string_view name) const;
  bool has(std::string_view name) const;
  std::int64_t integer(std::string_view name) const;
  /// Returns the shortest decimal of a float32: 1e-05 and not 9.99999974737875e-06.
  double real(std::string_view name) const;

 private:
  Json value_like(const Json& required, const std::string& key) const;

  const GgufFile& file_;
  std::string architecture_;
};

/// Adds such metadata to a file that is written.
class GgufFieldWriter {
 public:
  /// Keeps a reference to `file`.
  GgufFieldWriter(GgufWriter& file, std::string_view architecture)
      : file_(file), prefix_(std::string(architecture) + ".") {}

  void integer(std::string_view name, std::int64_t value) { file_.integer(key(name), value); }
  void real(std::string_view name, double value) { file_.real(key(name), value); }
  void flag(std::string_view name, bool value) { file_.flag(key(name), value); }
  void text(std::string_view name, std::string_view value) { file_.text(key(name), value); }

 private:
  std::string key(std::string_view name) const { return prefix_ + std::string(name); }

  GgufWriter& file_;
  std::string prefix_;
};

/// Returns the shortest decimal of a number that is a float32, else the number.
double shortest(double value);

}  // namespace prefopt::detail
