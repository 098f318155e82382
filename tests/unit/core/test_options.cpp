// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/options.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

enum class Color { kRed, kGreen };

struct Inner {
  std::int64_t count = 3;
  void fields(FieldVisitor& v) { v.integer({"count", "how many"}, count, Range::at_least(1)); }
};

struct Outer {
  double rate = 0.5;
  bool on = false;
  std::string name = "n";
  std::vector<std::string> list = {};
  Color color = Color::kRed;
  std::string raw = "{}";
  Inner inner = {};

  void fields(FieldVisitor& v) {
    v.real({"rate", "a rate", {"speed"}}, rate, Range::between(0, 1));
    v.flag({"on", "a flag"}, on);
    v.text({"name", "a text"}, name);
    v.texts({"list", "texts"}, list);
    v.choice({"color", "a choice"}, color, {"red", "green"});
    v.json({"raw", "any JSON"}, raw);
    v.group({"inner", "a group"}, inner);
  }
};

TEST_CASE("options: JSON in and out", "[core]") {
  const auto o = options_from_json<Outer>(
      R"({"speed": 0.25, "on": true, "name": "x", "list": ["a", "b"], "color": "green",
          "raw": {"k": [1, 2]}, "inner": {"count": 7}})",
      "outer");
  CHECK(o.rate == 0.25);
  CHECK(o.on);
  CHECK(o.name == "x");
  CHECK(o.list == std::vector<std::string>{"a", "b"});
  CHECK(o.color == Color::kGreen);
  CHECK(o.raw == R"({"k":[1,2]})");
  CHECK(o.inner.count == 7);
  CHECK(options_to_json(o) ==
        R"({"rate":0.25,"on":true,"name":"x","list":["a","b"],"color":"green",)"
        R"("raw":{"k":[1,2]},"inner":{"count":7}})");
  CHECK(options_to_json(options_from_json<Outer>(options_to_json(o), "outer")) ==
        options_to_json(o));
}

struct Listed {
  std::string rows = {};
  void fields(FieldVisitor& v) { v.text_or_list({"rows", "a text or a list"}, rows); }
};

TEST_CASE("options: a text or a list stays what it is", "[core]") {
  for (const char* json : {R"({"rows":"a.jsonl"})", R"({"rows":["a",{"path":"b","weight":2.0}]})",
                           R"({"rows":"[ab].jsonl"})", R"({"rows":""})"}) {
    CHECK(options_to_json(options_from_json<Listed>(json, "listed")) == json);
  }
  CHECK(options_from_json<Listed>(R"({"rows": [1]})", "listed").rows == "[1]");
  CHECK_THROWS_TEXT(options_from_json<Listed>(R"({"rows": 3})", "listed"), ConfigError,
                    "listed: expected rows to be text or a list, got 3");
}

TEST_CASE("options: what is refused", "[core]") {
  const auto read = [](const char* json) { return options_from_json<Outer>(json, "outer"); };
  CHECK_THROWS_TEXT(read("{"), ConfigError,
                    "outer: expected JSON, got something else: parse error at line 1, column 2: "
                    "syntax error while parsing object key - unexpected end of input; expected "
                    "string literal");
  CHECK_THROWS_TEXT(read("3"), ConfigError, "outer: expected an object of options, got 3");
  CHECK_THROWS_TEXT(read(R"({"rat": 1})"), ConfigError,
                    "outer: expected a known option, got 'rat'; did you mean 'rate'?");
  CHECK_THROWS_TEXT(read(R"({"zzzzzz": 1})"), ConfigError,
                    "outer: expected a known option, got 'zzzzzz'");
  CHECK_THROWS_TEXT(read(R"({"count": 1})"), ConfigError,
                    "outer: expected a known option, got 'count'; it is an option of 'inner'");
  CHECK_THROWS_TEXT(read(R"({"inner": {"speed": 1}})"), ConfigError,
                    "outer.inner: expected a known option, got 'speed'; it is an option of the top "
                    "level");
  CHECK_THROWS_TEXT(read(R"({"rate": 1.5})"), ConfigError,
                    "outer: expected rate in [0, 1], got 1.5");
  CHECK_THROWS_TEXT(read(R"({"on": 1})"), ConfigError,
                    "outer: expected on to be true or false, got 1");
  CHECK_THROWS_TEXT(read(R"({"name": 1})"), ConfigError, "outer: expected name to be text, got 1");
  CHECK_THROWS_TEXT(read(R"({"list": ["a", 1]})"), ConfigError,
                    R"(outer: expected list to be a list of texts, got ["a",1])");
  CHECK_THROWS_TEXT(read(R"({"color": "gren"})"), ConfigError,
                    "outer: expected color to be one of 'red', 'green', got 'gren'; did you mean "
                    "'green'?");
  CHECK_THROWS_TEXT(read(R"({"inner": {"count": 1.5}})"), ConfigError,
                    "outer.inner: expected count to be a whole number, got 1.5");
  CHECK_THROWS_TEXT(read(R"({"inner": {"count": 0}})"), ConfigError,
                    "outer.inner: expected count >= 1, got 0");
  CHECK_THROWS_TEXT(read(R"({"inner": {"count": 18446744073709551615}})"), ConfigError,
                    "outer.inner: expected count to be a number of at most 64 bits, got "
                    "18446744073709551615");
  CHECK_THROWS_TEXT(read(R"({"inner": 3})"), ConfigError,
                    "outer: expected inner to be an object, got 3");
  CHECK_THROWS_TEXT(read(R"({"inner": {"cuont": 3}})"), ConfigError,
                    "outer.inner: expected a known option, got 'cuont'; did you mean 'count'?");
  CHECK_THROWS_TEXT(read(R"({"rate": 0.1, "speed": 0.2})"), ConfigError,
                    "outer: expected rate once, got it as 'rate' and as 'speed'");
  CHECK_THROWS_TEXT(checked(Outer{.rate = -1}, "outer"), ConfigError,
                    "outer: expected rate in [0, 1], got -1");
  CHECK_THROWS_TEXT(options_to_json(Outer{.color = static_cast<Color>(9)}), ConfigError,
                    "options: expected color to be one of 'red', 'green', got enumerator 9");
  const std::string deep = std::string(70, '[') + std::string(70, ']');
  CHECK_THROWS_TEXT(read((R"({"raw": )" + deep + "}").c_str()), ConfigError,
                    "outer: expected JSON, got nesting deeper than 64 levels");
}

TEST_CASE("options: the documentation table", "[core]") {
  const auto rows = describe_options<Outer>();
  REQUIRE(rows.size() == 7);
  CHECK(rows[0].name == "rate");
  CHECK(rows[0].range == "in [0, 1]");
  CHECK(rows[0].default_value == "0.5");
  CHECK(rows[0].aliases == std::vector<std::string>{"speed"});
  CHECK(rows[4].range == "'red', 'green'");
  CHECK(rows[4].default_value == "red");
  CHECK(rows[6].name == "inner.count");
  CHECK(rows[6].range == ">= 1");
}

}  // namespace
}  // namespace prefopt
