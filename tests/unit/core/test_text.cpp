// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "core/json.h"
#include "core/text.h"
#include "support/catch.h"

namespace prefopt::detail {
namespace {

TEST_CASE("what is printed holds no character that a terminal obeys", "[core]") {
  CHECK(printable("\x1b]0;owned\x07\x1b[31m") == "␛]0;owned␇␛[31m");
  CHECK(printable(std::string("a\0b\x7f", 4)) == "a␀b␡");
  CHECK(printable("a\r\nb\tc") == "a␍␊b␉c");
  CHECK(printable("a\r\nb\tc", /*keep_lines=*/true) == "a␍\nb\tc");
  CHECK(printable("\u009b31m") == "\\u009b31m");  // CSI in one character
  CHECK(printable("\u202egpj.exe\u2066") == "\\u202egpj.exe\\u2066");
  CHECK(printable("caf\u00e9 \u65e5\u672c \U0001F600 \u00a0") ==
        "caf\u00e9 \u65e5\u672c \U0001F600 \u00a0");
  CHECK(printable("\xff\xc2") == "\uFFFD\uFFFD");
  CHECK(printable("") == "");
}

TEST_CASE("texts of files in errors are short and printable", "[core]") {
  CHECK(shown_text("a\x1b[2Jb") == "a␛[2Jb");
  CHECK(shown_text(std::string(400, '\x1b')).size() == 3 * 300 + 3);
  CHECK(shown_json(Json("\u009b")) == "\"\\u009b\"");
}

}  // namespace
}  // namespace prefopt::detail
