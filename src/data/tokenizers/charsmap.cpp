// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizers/charsmap.h"

#include <fmt/format.h>

#include "core/utf8.h"
#include "data/tokenizers/unicode.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

// The fields of a unit of the double array.
bool has_leaf(std::uint32_t unit) { return ((unit >> 8) & 1) != 0; }
std::uint32_t value_of(std::uint32_t unit) { return unit & 0x7FFFFFFF; }
std::uint32_t label_of(std::uint32_t unit) { return unit & 0x800000FF; }
std::uint32_t offset_of(std::uint32_t unit) {
  return (unit >> 10) << ((unit & (std::uint32_t{1} << 9)) >> 6);
}

std::uint32_t little_endian(std::string_view bytes, std::size_t at) {
  std::uint32_t value = 0;
  for (std::size_t i = 4; i > 0; --i) {
    value = (value << 8) | static_cast<unsigned char>(bytes[at + i - 1]);
  }
  return value;
}

[[noreturn]] void fail(std::string_view where, std::string_view got) {
  throw CheckpointError(
      fmt::format("{}: expected SentencePiece's table of replacements, got {}", where, got));
}

}  // namespace

CharsmapTable::CharsmapTable(std::string_view bytes, std::string_view where) {
  constexpr std::size_t kUnit = sizeof(std::uint32_t);
  const std::size_t size = bytes.size() < kUnit ? 0 : little_endian(bytes, 0);
  if (size < kUnit || size % kUnit != 0 || size > bytes.size() - kUnit) {
    fail(where, fmt::format("{} bytes with a trie of {}", bytes.size(), size));
  }
  units_.reserve(size / kUnit);
  for (std::size_t at = kUnit; at < kUnit + size; at += kUnit) {
    units_.push_back(little_endian(bytes, at));
  }
  replacements_ = bytes.substr(kUnit + size);
  if (find_invalid_utf8(replacements_) != std::string_view::npos) {
    fail(where, "replacements that are no UTF-8");
  }
  check(where);
}

/// Walks all states that a text can reach, so that find() stays within the table.
void CharsmapTable::check(std::string_view where) const {
  std::vector<bool> seen(units_.size());
  std::vector<std::uint32_t> open{offset_of(units_[0])};
  const auto within = [&](std::uint32_t at) {
    if (at >= units_.size()) fail(where, "a trie that leads out of it");
  };
  while (!open.empty()) {
    const std::uint32_t base = open.back();
    open.pop_back();
    for (std::uint32_t byte = 1; byte < 256; ++byte) {
      const std::uint32_t at = base ^ byte;
      within(at);
      const std::uint32_t unit = units_[at];
      if (label_of(unit) != byte || seen[at]) continue;
      seen[at] = true;
      const std::uint32_t next = at ^ offset_of(unit);
      within(next);
      if (has_leaf(unit)) {
        const std::uint32_t value = value_of(units_[next]);
        const bool inside = value < replacements_.size();
        if (!inside || (static_cast<unsigned char>(replacements_[value]) & 0xC0) == 0x80) {
          fail(where, "a trie with values that are no offsets of replacements");
        }
      }
      open.push_back(next);
    }
  }
}

std::optional<std::string_view> CharsmapTable::find(std::string_view text) const {
  std::uint32_t at = offset_of(units_[0]);
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte == 0) break;
    at ^= byte;
    const std::uint32_t unit = units_[at];
    if (label_of(unit) != byte) break;
    at ^= offset_of(unit);
    if (!has_leaf(unit)) continue;
    const std::size_t begin = value_of(units_[at]);
    return std::string_view(replacements_).substr(begin, replacements_.find('\0', begin) - begin);
  }
  return std::nullopt;
}

std::string CharsmapTable::apply(std::string_view text) const {
  constexpr std::size_t kLongCluster = 6;
  std::string result;
  result.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = grapheme_end(text, at);
    const auto whole = end - at < kLongCluster ? find(text.substr(at, end - at)) : std::nullopt;
    if (whole) {
      result += *whole;
      at = end;
    }
    while (at < end) {
      const std::string_view character = text.substr(at, utf8_character(text, at).length);
      result += find(character).value_or(character);
      at += character.size();
    }
  }
  return result;
}

}  // namespace prefopt::detail
