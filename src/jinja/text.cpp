// SPDX-License-Identifier: Apache-2.0
#include "jinja/text.h"

#include <algorithm>
#include <utility>

#include "core/utf8.h"
#include "jinja/budget.h"
#include "jinja/failure.h"

namespace prefopt::jinja {

Text::Text(std::string bytes, Origin origin) : bytes_(std::move(bytes)) {
  if (origin != kOfTemplate) origins_.assign(bytes_.size(), origin);
}

void Text::check_growth(std::size_t more) const {
  if (more > kMaxTextBytes || bytes_.size() > kMaxTextBytes - more) {
    throw Failure("expected texts of at most 64 MiB, got a longer one");
  }
  spend(1 + more / 64);
}

Text Text::part(std::size_t begin, std::size_t end) const {
  spend(1 + (end - begin) / 64);
  Text result;
  result.bytes_ = bytes_.substr(begin, end - begin);
  if (is_marked()) result.origins_ = origins_.substr(begin, end - begin);
  return result;
}

void Text::append_part(const Text& more, std::size_t begin, std::size_t end) {
  const std::size_t count = end - begin;
  check_growth(count);
  if (more.is_marked()) {
    origins_.resize(bytes_.size(), kOfTemplate);
    origins_.append(more.origins_, begin, count);
  } else if (is_marked()) {
    origins_.append(count, kOfTemplate);
  }
  bytes_.append(more.bytes_, begin, count);
}

void Text::append(const Text& more) { append_part(more, 0, more.size()); }

void Text::append(std::string_view more, Origin origin) {
  check_growth(more.size());
  if (origin != kOfTemplate) origins_.resize(bytes_.size(), kOfTemplate);
  if (origin != kOfTemplate || is_marked()) origins_.append(more.size(), origin);
  bytes_ += more;
}

void Text::mark_generated() {
  origins_.resize(bytes_.size(), kOfTemplate);
  for (Origin& origin : origins_) origin |= kGenerated;
}

Text Text::as_markup(bool is_markup) const {
  Text result = *this;
  result.is_markup_ = is_markup;
  return result;
}

Characters::Characters(std::string_view text) : size_(text.size()) {
  ascii_ = std::all_of(text.begin(), text.end(),
                       [](char c) { return static_cast<unsigned char>(c) < 0x80; });
  if (ascii_) return;
  for (std::size_t at = 0; at < text.size();) {
    offsets_.push_back(at);
    at += detail::utf8_character(text, at).length;
  }
  offsets_.push_back(text.size());
}

std::size_t count_characters(std::string_view text) { return Characters(text).count(); }

}  // namespace prefopt::jinja
