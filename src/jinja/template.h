// SPDX-License-Identifier: Apache-2.0
#pragma once

// Chat templates: the part of Jinja2 that they are written in, as transformers renders them
// (ImmutableSandboxedEnvironment with trim_blocks, lstrip_blocks, loop controls and {% generation
// %}). A template renders to jinja2's text, byte for byte, or is refused.

#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "jinja/value.h"

namespace prefopt::jinja {

using Variables = std::vector<std::pair<std::string, Value>>;

struct RenderOptions {
  std::tm now = {};  ///< what strftime_now writes
  /// Of a Budget. Work on the variables' own text is added to it.
  std::size_t work = 20'000'000;
};

class Template {
 public:
  /// Throws ConfigError, `where: line N: expected …`, for what is no template, and for what is not
  /// known here, by its name.
  Template(std::string_view source, std::string where);
  ~Template();
  Template(Template&& other) noexcept;

  /// Returns the text, each byte with its origin. Throws DataError, `where: NAME: line N: expected
  /// …`, where jinja2 raises, for raise_exception, and for what the limits forbid.
  Text render(const Variables& variables, std::string_view where,
              const RenderOptions& options = {}) const;

  /// Returns whether something in the template has this name.
  bool reads(std::string_view name) const;
  /// Returns whether blocks say what the assistant wrote.
  bool has_generation() const;

 private:
  struct Parsed;
  std::string name_;
  std::unique_ptr<const Parsed> parsed_;
};

}  // namespace prefopt::jinja
