// SPDX-License-Identifier: Apache-2.0
#include "decoder/gguf_fields.h"

#include <fmt/format.h>

#include <cmath>

namespace prefopt::detail {

GgufFields::GgufFields(const GgufFile& file)
    : StrictFile(file.path()), file_(file), architecture_(file.text("general.architecture")) {}

void GgufFields::check(const KnownFields& known) const {
  const std::string prefix = key("");
  for (const std::string& key : file_.keys()) {
    // Other prefixes lead notes and what is about the tokenizer.
    if (!key.starts_with(prefix)) continue;
    if (known.contain(std::string_view(key).substr(prefix.size()))) continue;
    fail("metadata that this decoder understands", "'" + key + "'");
  }
  for (const auto& [name, value] : known.required) {
    if (has(name)) check_required(key(name), value, value_like(value, key(name)));
  }
}

std::string GgufFields::key(std::string_view name) const {
  return fmt::format("{}.{}", architecture_, name);
}

bool GgufFields::has(std::string_view name) const { return file_.has(key(name)); }

std::int64_t GgufFields::integer(std::string_view name) const { return file_.integer(key(name)); }

double GgufFields::real(std::string_view name) const { return shortest(file_.real(key(name))); }

Json GgufFields::value_like(const Json& required, const std::string& key) const {
  if (required.is_boolean()) return file_.flag(key);
  if (required.is_string()) return file_.text(key);
  if (required.is_number_float()) return file_.real(key);
  return file_.integer(key);
}

double shortest(double value) {
  const auto narrow = static_cast<float>(value);
  if (!std::isfinite(narrow) || static_cast<double>(narrow) != value) return value;
  return Json::parse(fmt::format("{}", narrow)).get<double>();
}

}  // namespace prefopt::detail
