// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_config.h"

namespace prefopt::detail {

std::string token_text(const JsonNode& field) {
  if (field.is_null()) return "";
  return field.is_text() ? field.text() : field.member("content").text();
}

std::vector<NamedTemplate> chat_templates(const JsonNode& field) {
  if (field.is_null()) return {};
  if (!field.is_list()) return {{"default", field.text()}};
  std::vector<NamedTemplate> templates;
  for (std::size_t i = 0; i < field.size(); ++i) {
    const JsonNode item = field.item(i);
    templates.push_back({item.member("name").text(), item.member("template").text()});
  }
  return templates;
}

}  // namespace prefopt::detail
