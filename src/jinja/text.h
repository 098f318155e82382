// SPDX-License-Identifier: Apache-2.0
#pragma once

// Text of a template, which knows where each of its bytes came from.

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace prefopt::jinja {

/// The origin of a byte: who wrote it, and whether a generation block did so. The template itself
/// is 0; other numbers are given out by whoever makes the variables.
using Origin = char16_t;
inline constexpr Origin kOfTemplate = 0;
inline constexpr Origin kGenerated = 0x4000;  ///< a flag
inline constexpr Origin kMaxOrigin = 0x3fff;  ///< the last number to give out
inline constexpr std::size_t kMaxTextBytes = std::size_t{64} << 20;

constexpr Origin writer_of(Origin origin) { return origin & 0x3fff; }

/// UTF-8 with an origin for each byte. Whatever makes a text of others keeps the origins of their
/// bytes: template text is never mistaken for that of variables, or the other way round. Functions
/// that grow a text throw Failure over kMaxTextBytes.
class Text {
 public:
  Text() = default;
  explicit Text(std::string bytes, Origin origin = kOfTemplate);

  const std::string& bytes() const { return bytes_; }
  std::string_view view() const { return bytes_; }
  std::size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  Origin origin(std::size_t at) const { return origins_.empty() ? kOfTemplate : origins_[at]; }
  /// Returns false where all of it is the template's.
  bool is_marked() const { return !origins_.empty(); }

  /// Returns the bytes [begin, end).
  Text part(std::size_t begin, std::size_t end) const;
  void append(const Text& more);
  void append(std::string_view more, Origin origin = kOfTemplate);
  void append_part(const Text& more, std::size_t begin, std::size_t end);

  /// Sets kGenerated for all bytes.
  void mark_generated();

  /// Text of jinja2's Markup, which escapes what it is put together with.
  bool is_markup() const { return is_markup_; }
  Text as_markup(bool is_markup = true) const;

 private:
  void check_growth(std::size_t more) const;

  std::string bytes_;
  std::u16string origins_;  ///< one a byte; empty: all kOfTemplate
  bool is_markup_ = false;
};

/// The characters of UTF-8 text, by the offset where each begins; what is no UTF-8 counts a byte.
class Characters {
 public:
  explicit Characters(std::string_view text);
  std::size_t count() const { return ascii_ ? size_ : offsets_.size() - 1; }
  /// Returns the offset of the character, or the size of the text for count().
  std::size_t offset(std::size_t character) const {
    return ascii_ ? character : offsets_[character];
  }

 private:
  std::size_t size_;
  bool ascii_;
  std::vector<std::size_t> offsets_;
};

std::size_t count_characters(std::string_view text);

}  // namespace prefopt::jinja
