// SPDX-License-Identifier: Apache-2.0
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "jinja/template.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::jinja_test {
namespace {

using Json = nlohmann::ordered_json;
using jinja::Template;
using jinja::Text;

/// The moment at which the texts were recorded.
jinja::RenderOptions recorded_time() {
  std::tm now{};
  now.tm_year = 126;
  now.tm_mon = 11;
  now.tm_mday = 1;
  now.tm_hour = 9;
  now.tm_min = 5;
  now.tm_sec = 7;
  now.tm_wday = 2;
  now.tm_yday = 334;
  return {.now = now};
}

Json recorded(const std::string& name) {
  std::ifstream file(PREFOPT_TEST_DATA_DIR "/jinja/" + name);
  return Json::parse(file);
}

jinja::Variables variables_of(const Json& object, jinja::Origin origin = jinja::kOfTemplate) {
  jinja::Variables variables;
  for (const auto& [name, value] : object.items()) {
    variables.emplace_back(name, jinja::value_of(value, origin));
  }
  return variables;
}

/// Compares with jinja2's text; null: jinja2 raised.
void check(const std::string& source, const Json& variables, const Json& expected) {
  INFO(source);
  Json text = nullptr;
  std::string error;
  try {
    text = Template(source, "t").render(variables_of(variables), "row", recorded_time()).bytes();
  } catch (const Error& refusal) {
    error = refusal.what();
    CHECK(error.find("line ") != std::string::npos);
    CHECK(error.find(": expected ") != std::string::npos);
  }
  INFO(error);
  CHECK(text == expected);
}

TEST_CASE("expressions and statements render as jinja2 renders them", "[jinja]") {
  const Json file = recorded("snippets.json");
  REQUIRE(file["cases"].size() > 200);
  for (const Json& recorded_case : file["cases"]) {
    check(recorded_case[0].get<std::string>(), file["variables"], recorded_case[1]);
  }
}

TEST_CASE("chat templates render as transformers renders them", "[jinja]") {
  const Json file = recorded("chats.json");
  REQUIRE(file["renders"].size() > 200);
  for (const Json& render : file["renders"]) {
    Json variables = {{"messages", file["conversations"][render[1].get<std::size_t>()]},
                      {"tools", nullptr},
                      {"documents", nullptr},
                      {"add_generation_prompt", render[3]},
                      {"bos_token", "<s>"},
                      {"eos_token", "</s>"}};
    if (render[2] == true) variables["tools"] = Json::array({file["tool"]});
    for (const auto& [name, value] : render[4].items()) variables[name] = value;
    check(file["templates"][render[0].get<std::string>()].get<std::string>(), variables, render[5]);
  }
}

TEST_CASE("a template that is none is refused with its line", "[jinja]") {
  const auto refuse = [](const std::string& source, const std::string& what) {
    INFO(source);
    CHECK_THROWS_TEXT(Template(source, "file"), ConfigError, "file: " + what);
  };
  refuse("a\n{% nope %}", "line 2: expected a tag known here, got 'nope'");
  refuse("{% include 'x' %}", "line 1: expected a tag known here, got 'include'");
  refuse("{{ 1 | urlencode }}", "line 1: expected a filter known here, got 'urlencode'");
  refuse("\n\n{{ 1 is prime }}", "line 3: expected a test known here, got 'prime'");
  refuse("{% if a %}\n",
         "line 1: expected one of the tags elif, else, endif, got the end of the "
         "template");
  refuse("{{ a", "line 1: expected the end of a tag, got the end of the template");
  refuse("{{ 'a }}", "line 1: expected the end of a text, got the end of the template");
  refuse("{# a", "line 1: expected '#}' at the end of a comment, got the end of the template");
  refuse("{% raw %}", "line 1: expected {% endraw %}, got the end of the template");
  refuse("{{ (a] }}", "line 1: expected brackets in pairs, got ']'");
  refuse("{{ a b }}", "line 1: expected '}}', got 'b'");
  refuse("{{ a ? b }}", "line 1: expected an expression, got '?'");
  refuse("{{ caf\u00e9 }}", "line 1: expected names of ASCII letters, got another character");
  refuse("{% set 1 = a %}", "line 1: expected a name to assign to, got '1'");
  refuse("{% break %}", "line 1: expected 'break' within a loop, got it outside");
  refuse("{{ 99999999999999999999 }}", "line 1: expected integers of 64 bits, got a longer one");
  refuse("{{ '\\N{DASH}' }}", "line 1: expected escapes by number, got one by name");
  CHECK_THROWS_TEXT(Template("a\xff", "file"), ConfigError,
                    "file: expected a template in UTF-8, got another byte at offset 1");
}

TEST_CASE("nesting is limited", "[jinja]") {
  const std::string open(150, '('), close(150, ')');
  CHECK_THROWS_TEXT(Template("{{ " + open + "1" + close + " }}", "file"), ConfigError,
                    "file: line 1: expected at most 100 levels of nesting, got more");
  std::string sum = "{{ 1";
  for (int i = 0; i < 300; ++i) sum += " + 1";
  CHECK_THROWS_TEXT(Template(sum + " }}", "file"), ConfigError,
                    "file: line 1: expected expressions of at most 200 levels, got deeper ones");
}

std::string refusal_of(const std::string& source, const jinja::RenderOptions& options = {}) {
  const Template chat(source, "file");
  const Json variables = {{"d", {{"a", 1}}}, {"l", {1, 2}}, {"s", "text"}};
  try {
    chat.render(variables_of(variables), "rows:3", options);
  } catch (const DataError& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("a loop is not asked by its own condition", "[jinja]") {
  for (const std::string asked : {"length", "last", "nextitem"}) {
    INFO(asked);
    CHECK(refusal_of("{% set ns = namespace(l=0) %}{% for x in range(9) if ns.l == 0 or ns.l." +
                     asked + " %}{% set ns.l = loop %}{{ x }}{% endfor %}") ==
          "rows:3: file: line 1: expected a condition that does not ask for its loop's next items, "
          "got one");
  }
}

TEST_CASE("what a render refuses names row, template and line", "[jinja]") {
  CHECK(refusal_of("\n{{ x.y }}") ==
        "rows:3: file: line 2: expected 'x' to be defined, got no such variable");
  CHECK(refusal_of("{{ d.b.c }}") == "rows:3: file: line 1: expected 'b' in dict, got none");
  CHECK(refusal_of("{{ l.append(3) }}") ==
        "rows:3: file: line 1: expected a template that changes no values, got 'append' of list");
  CHECK(refusal_of("{{ raise_exception('Roles \"must\" alternate') }}") ==
        "rows:3: file: line 1: expected a conversation that the template takes, got its error "
        "'Roles \"must\" alternate'");
  CHECK(refusal_of("{{ s.encode('utf-8') }}") ==
        "rows:3: file: line 1: expected an attribute of str known here, got 'encode'");
  CHECK(refusal_of("{{ 1 + s }}") ==
        "rows:3: file: line 1: expected values that '+' takes, got int and str");
  CHECK(refusal_of("{{ 9223372036854775807 + 1 }}") ==
        "rows:3: file: line 1: expected integers of 64 bits, got a larger result");
  CHECK(refusal_of("{{ range(3) }}") ==
        "rows:3: file: line 1: expected a value with a text, got a range or generator; the filter "
        "'list' makes a list of it");
  CHECK(refusal_of("{{ strftime_now('%Z') }}") ==
        "rows:3: file: line 1: expected a field of strftime_now known here, got '%Z'");
  CHECK(refusal_of("{{ '\ufb01'.upper() }}") ==
        "rows:3: file: line 1: expected letters with one letter of the other case, got U+FB01");
}

TEST_CASE("a template that does not come to an end is stopped", "[jinja]") {
  const std::string work =
      "rows:3: file: line 1: expected a template that comes to an end, got one that does too much "
      "work";
  CHECK(refusal_of("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
                   {.work = 100'000}) == work);
  CHECK(refusal_of("{% set ns = namespace(t='ab') %}{% for a in range(99) %}"
                   "{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
                   {.work = 100'000}) == work);
  CHECK(refusal_of("{{ 'x' * 999999999 }}") ==
        "rows:3: file: line 1: expected texts of at most 64 MiB, got a longer one");
  CHECK(refusal_of("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}") ==
        "rows:3: file: line 1: expected at most 100 calls within calls, got more");
  CHECK(refusal_of("{% set ns = namespace(x=1) %}{% for a in range(200) %}"
                   "{% set ns.x = [ns.x] %}{% endfor %}") ==
        "rows:3: file: line 1: expected values of at most 100 levels, got deeper ones");
}

TEST_CASE("numbers that Python would keep are refused, not rounded", "[jinja]") {
  CHECK_THROWS(jinja::value_of(Json::parse("18446744073709551615")));
  CHECK_THROWS(jinja::value_of(Json::parse("123456789012345678901234567890")));
}

/// The text with a letter for the origin of each byte: t for the template, a for the variables.
std::string origins_of(const std::string& source) {
  const Json variables = {{"s", "a b"}, {"l", {"x", "y"}}, {"d", {{"k", "v\n"}}}, {"n", 5}};
  const Text text = Template(source, "t").render(variables_of(variables, 1), "row");
  std::string origins;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const jinja::Origin writer = jinja::writer_of(text.origin(i));
    origins += writer == jinja::kOfTemplate ? 't' : 'a';
  }
  return origins;
}

TEST_CASE("each byte knows whether the template wrote it", "[jinja]") {
  CHECK(origins_of("<{{ s }}>") == "taaat");
  CHECK(origins_of("{{ '<' ~ s + '>' }}") == "taaat");
  CHECK(origins_of("{{ s.split(' ') | join('|') }}") == "ata");
  CHECK(origins_of("{{ s.replace(' ', '--') }}") == "atta");
  CHECK(origins_of("{{ (' ' ~ s ~ ' ') | trim }}") == "aaa");
  CHECK(origins_of("{{ s | upper }}{{ s[::-1] }}{{ s[1:] }}") == "aaaaaaaa");
  CHECK(origins_of("{{ d | tojson }}") == "ttattttaaatt");
  CHECK(origins_of("{{ l }}") == "ttattttatt");
  CHECK(origins_of("{{ '%s=%d' % (s, n) }}{{ '{}!'.format(s) }}") == "aaattaaat");
  CHECK(origins_of("{% set x %}[{{ s }}]{% endset %}{{ x }}") == "taaat");
  CHECK(origins_of("{% macro f(y) %}({{ y }}){% endmacro %}{{ f(s) | indent }}") == "taaat");
  CHECK(origins_of("{{ 'x' if s else s }}{{ n }}{{ s | length }}") == "ttt");
}

TEST_CASE("generation blocks mark their text, also within other texts", "[jinja]") {
  const Template chat(
      "a{% generation %}b{{ s }}{% endgeneration %}c"
      "{% set x %}{% generation %}d{% endgeneration %}e{% endset %}{{ x }}",
      "t");
  CHECK(chat.has_generation());
  const Text text = chat.render({{"s", jinja::Value("x")}}, "row");
  CHECK(text.bytes() == "abxcde");
  std::string marks;
  for (std::size_t i = 0; i < text.size(); ++i) {
    marks += (text.origin(i) & jinja::kGenerated) != 0 ? '1' : '0';
  }
  CHECK(marks == "011010");
  CHECK_FALSE(Template("a", "t").has_generation());
  CHECK(chat.reads("s"));
  CHECK_FALSE(chat.reads("t"));
}

}  // namespace
}  // namespace prefopt::jinja_test
