// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizers/model.h"

#include <fmt/format.h>

#include <algorithm>

#include "data/tokenizers/byte_alphabet.h"
#include "prefopt/error.h"

namespace prefopt::detail {

TokenIndex::TokenIndex(const std::vector<std::string>& tokens) : tokens_(tokens) {
  ids_.reserve(tokens.size());
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].empty()) ids_.insert_or_assign(tokens[id], static_cast<Id>(id));
  }
}

void TokenIndex::check_distinct(std::string_view name) const {
  for (std::size_t id = 0; id < tokens_.size(); ++id) {
    const std::string& token = tokens_[id];
    if (token.empty() || find(token) == static_cast<Id>(id)) continue;
    throw CheckpointError(fmt::format("{}: expected tokens that differ, got '{}' as {} and {}",
                                      name, token, id, find(token)));
  }
}

std::vector<TokenModel::Id> byte_tokens(const TokenIndex& index) {
  std::vector<TokenModel::Id> ids(256);
  for (unsigned byte = 0; byte < 256; ++byte) {
    ids[byte] = index.find(token_of_byte(static_cast<unsigned char>(byte)));
  }
  return ids;
}

bool append_bytes(std::string_view text, const std::vector<TokenModel::Id>& bytes,
                  std::vector<TokenModel::Id>& ids) {
  const auto id_of = [&](char c) { return bytes[static_cast<unsigned char>(c)]; };
  if (!std::all_of(text.begin(), text.end(), [&](char c) { return id_of(c) >= 0; })) return false;
  for (char c : text) ids.push_back(id_of(c));
  return true;
}

}  // namespace prefopt::detail
