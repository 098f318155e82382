// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/tokenizer.h"

#include <fmt/format.h>

#include "prefopt/error.h"

namespace prefopt {

std::vector<std::int64_t> ByteTokenizer::encode(std::string_view text) const {
  std::vector<std::int64_t> ids;
  ids.reserve(text.size());
  // Through unsigned char: a plain char above 127 would become a negative id.
  for (char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

std::string ByteTokenizer::decode(const std::vector<std::int64_t>& ids) const {
  std::string text;
  text.reserve(ids.size());
  for (std::int64_t id : ids) {
    if (id >= 0 && id < 256) text.push_back(static_cast<char>(id));
  }
  return text;
}

std::shared_ptr<const Tokenizer> make_tokenizer(std::string_view name) {
  if (name == "byte") return std::make_shared<ByteTokenizer>();
  throw ConfigError(fmt::format("make_tokenizer: expected 'byte', got '{}'", name));
}

}  // namespace prefopt
