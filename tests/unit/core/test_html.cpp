// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "core/html.h"
#include "support/catch.h"

namespace prefopt::detail {
namespace {

TEST_CASE("text becomes HTML that shows it and does nothing else", "[core]") {
  CHECK(escape_html("") == "");
  CHECK(escape_html("a < b && c > \"d\" 'e'") ==
        "a &lt; b &amp;&amp; c &gt; &quot;d&quot; &#39;e&#39;");
  CHECK(escape_html("&lt;") == "&amp;lt;");
  CHECK(escape_html("tab\tand\nline") == "tab\tand\nline");
  CHECK(escape_html(std::string("\0\x1b[31m\r\x7f", 8)) == "␀␛[31m␍␡");
  CHECK(escape_html("ü € 𝄞") == "ü € 𝄞");
  CHECK(escape_html("\xff<\xe2\x82>") == "\xef\xbf\xbd&lt;\xef\xbf\xbd&gt;");
}

}  // namespace
}  // namespace prefopt::detail
