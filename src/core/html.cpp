// SPDX-License-Identifier: Apache-2.0
#include "core/html.h"

#include "core/text.h"
#include "core/utf8.h"

namespace prefopt::detail {
namespace {

bool is_control(unsigned char c) { return (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f; }

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : replace_invalid_utf8(text)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        if (is_control(static_cast<unsigned char>(c))) {
          append_picture(static_cast<unsigned char>(c), out);
        } else {
          out += c;
        }
    }
  }
  return out;
}

}  // namespace prefopt::detail
