// SPDX-License-Identifier: Apache-2.0
#include "jinja/template.h"

#include <fmt/format.h>

#include "core/utf8.h"
#include "jinja/failure.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/renderer.h"
#include "prefopt/error.h"

namespace prefopt::jinja {

struct Template::Parsed {
  ParsedTemplate tree;
};

Template::Template(std::string_view source, std::string where) : name_(std::move(where)) {
  if (const std::size_t at = detail::find_invalid_utf8(source); at != std::string_view::npos) {
    throw ConfigError(
        fmt::format("{}: expected a template in UTF-8, got another byte at offset {}", name_, at));
  }
  try {
    parsed_ = std::make_unique<const Parsed>(Parsed{parse_template(source)});
  } catch (const SyntaxFailure& failure) {
    throw ConfigError(fmt::format("{}: line {}: {}", name_, failure.line, failure.what()));
  }
}

Template::~Template() = default;
Template::Template(Template&& other) noexcept = default;

Text Template::render(const Variables& variables, std::string_view where,
                      const RenderOptions& options) const {
  Renderer renderer(variables, options);
  try {
    return renderer.render(parsed_->tree.body);
  } catch (const Failure& failure) {
    throw DataError(
        fmt::format("{}: {}: line {}: {}", where, name_, renderer.line(), failure.what()));
  }
}

bool Template::reads(std::string_view name) const { return parsed_->tree.names.contains(name); }
bool Template::has_generation() const { return parsed_->tree.has_generation; }

}  // namespace prefopt::jinja
