// SPDX-License-Identifier: Apache-2.0
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "decoder/adapters/lora_rules.h"
#include "decoder/adapters/module_pattern.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt::test_lora_rules {
namespace {

using detail::Json;
using detail::LoraRules;

/// The answers of PEFT 0.21.2, by tools/make_adapter_cases.
Json matches_of_peft() {
  std::ifstream file(PREFOPT_TEST_DATA_DIR "/adapters/matches.json");
  return Json::parse(file);
}

LoraRules rules_of(const Json& options) {
  return {options_from_json<LoraOptions>(options.dump(), "lora"), "lora"};
}

}  // namespace

TEST_CASE("lora rules: targets are those of PEFT", "[decoder]") {
  const Json recorded = matches_of_peft();
  const auto modules = recorded["modules"].get<std::vector<std::string>>();
  std::size_t found = 0;
  for (const Json& test : recorded["targets"]) {
    INFO(test.dump());
    const LoraRules rules = rules_of(test["rule"]);
    std::vector<std::size_t> targets;
    for (std::size_t i = 0; i < modules.size(); ++i) {
      if (rules.targets(modules[i], detail::ModuleKind::kLinear)) targets.push_back(i);
    }
    CHECK(targets == test["targets"].get<std::vector<std::size_t>>());
    found += targets.size();
  }
  CHECK(found > 100);
}

TEST_CASE("lora rules: all-linear is every linear map of a layer but those left out", "[decoder]") {
  const LoraRules rules =
      rules_of({{"target_modules", "ALL-linear"}, {"exclude_modules", {"o_proj"}}});
  using Kind = detail::ModuleKind;
  CHECK(rules.targets("model.layers.0.mlp.up_proj", Kind::kLinear));
  CHECK_FALSE(rules.targets("model.layers.0.self_attn.o_proj", Kind::kLinear));
  CHECK_FALSE(rules.targets("model.embed_tokens", Kind::kEmbedding));
  CHECK_FALSE(rules.targets("lm_head", Kind::kHead));
  CHECK_FALSE(rules.targets("model.norm", std::nullopt));
}

TEST_CASE("lora rules: the first pattern that matches counts, as in PEFT", "[decoder]") {
  const Json recorded = matches_of_peft();
  const auto modules = recorded["modules"].get<std::vector<std::string>>();
  for (const Json& test : recorded["patterns"]) {
    Json ranks = Json::object(), alphas = Json::object();
    for (const Json& pattern : test["patterns"]) {
      ranks[pattern.get<std::string>()] = ranks.size() + 1;
      alphas[pattern.get<std::string>()] = 0.5 * static_cast<double>(alphas.size() + 1);
    }
    const bool rslora = GENERATE(false, true);
    const LoraRules rules = rules_of({{"r", 99},
                                      {"lora_alpha", 7.5},
                                      {"use_rslora", rslora},
                                      {"rank_pattern", ranks},
                                      {"alpha_pattern", alphas}});
    for (std::size_t i = 0; i < modules.size(); ++i) {
      INFO(test["patterns"].dump() << " " << modules[i]);
      const int place = test["found"][i];
      const int rank = place < 0 ? 99 : place + 1;
      const double alpha = place < 0 ? 7.5 : 0.5 * (place + 1);
      CHECK(rules.rank_of(modules[i]) == rank);
      CHECK(rules.scale_of(modules[i]) == alpha / (rslora ? std::sqrt(rank) : rank));
    }
  }
}

TEST_CASE("lora rules: what Python and PCRE2 may read otherwise is found", "[decoder]") {
  struct Case {
    const char* pattern;
    std::size_t at;
  };
  for (const auto& [pattern, at] : std::vector<Case>{
           {"a**", 2},     {"a{,3}", 1},       {"a{3", 1},    {"a{3,2}", 1}, {"a{1000}", 1},
           {"a++", 1},     {"a*+", 1},         {"*a", 0},     {"(?i)a", 0},  {"(?P<n>a)", 0},
           {"(?<=a)b", 0}, {"(?>a)b", 0},      {"(?#x)", 0},  {"(a", 2},     {"a)", 1},
           {"[a", 0},      {"[[:alpha:]]", 0}, {"[a--b]", 0}, {"[a&&b]", 0}, {"[\\d-z]", 0},
           {"[z-a]", 0},   {"[\\b]", 0},       {"\\1", 0},    {"(a)\\1", 3}, {"\\h", 0},
           {"\\R", 0},     {"\\Qa\\E", 0},     {"\\x41", 0},  {"\\p{L}", 0}, {"\\z", 0},
           {"\\", 0},      {"\xc3\xa9", 0},    {"a\nb", 1},   {"^*", 1},     {"(?=a)*", 5},
           {"\\b+", 2},    {"|*", 1}}) {
    INFO(pattern);
    CHECK(detail::find_not_portable(pattern) == at);
  }
  CHECK(detail::find_not_portable(std::string(1001, 'a')) == 1000);
  CHECK(detail::find_not_portable(std::string(51, '(')) == 50);
  for (const char* pattern : {"", "a]b}", "[]a]", "[^]a-]", "[-a]", "[\\]\\w.*]", "(|a)", "(?!a)b",
                              "a{2}?b{1,}c{0,99}", "\\bq\\B\\A\\Z", "\\-\\.", "(a*)*"}) {
    INFO(pattern);
    CHECK_FALSE(detail::find_not_portable(pattern));
  }
}

TEST_CASE("lora rules: bad options are named", "[decoder]") {
  const auto check_refused = [](const Json& options, const std::string& error) {
    CHECK_THROWS_TEXT(rules_of(options), ConfigError, error);
  };
  const std::string hint =
      "; letters, '.', [...], (...), (?:...), (?=...), (?!...), |, ^, $, *, +, ?, {m,n}, and \\ in "
      "front of d, w, s, b or a sign are";
  check_refused({{"target_modules", 7}},
                "lora.target_modules: expected a list of texts, or a text with a pattern, got 7");
  check_refused({{"target_modules", {1}}},
                "lora.target_modules: expected a list of texts, or a text with a pattern, got [1]");
  for (const Json& none : {Json(nullptr), Json(""), Json::array()}) {
    check_refused({{"target_modules", none}},
                  "lora.target_modules: expected at least one name, got none");
  }
  check_refused({{"target_modules", "(?i)Q_PROJ"}},
                "lora.target_modules: expected a pattern of what Python's re and PCRE2 read alike, "
                "got '(?i)Q_PR' at 0 of '(?i)Q_PROJ'" +
                    hint);
  check_refused({{"exclude_modules", "a**"}},
                "lora.exclude_modules: expected a pattern of what Python's re and PCRE2 read "
                "alike, got '*' at 2 of 'a**'" +
                    hint);
  check_refused({{"modules_to_save", {"a("}}},
                "lora.modules_to_save: expected a pattern of what Python's re and PCRE2 read "
                "alike, got '' at 2 of 'a('" +
                    hint);
  check_refused({{"modules_to_save", {""}}},
                "lora.modules_to_save: expected names of modules, got an empty one");
  check_refused({{"rank_pattern", {{"q", 0}}}},
                "lora.rank_pattern: expected ranks in [1, 65536], got 'q': 0");
  check_refused({{"rank_pattern", {{"q", 1.5}}}},
                "lora.rank_pattern: expected ranks in [1, 65536], got 'q': 1.5");
  check_refused({{"rank_pattern", "q"}},
                "lora.rank_pattern: expected an object of numbers, got \"q\"");
  check_refused({{"alpha_pattern", {{"q", -1}}}},
                "lora.alpha_pattern: expected numbers > 0, got 'q': -1");
  check_refused({{"alpha_pattern", {{"\\1", 1}}}},
                "lora.alpha_pattern: expected a pattern of what Python's re and PCRE2 read alike, "
                "got '\\1' at 0 of '\\1'" +
                    hint);
  check_refused({{"layers_to_transform", "1"}},
                "lora.layers_to_transform: expected a layer's number or a list of them, got \"1\"");
  check_refused({{"layers_pattern", 3}},
                "lora.layers_pattern: expected a text or a list of texts, got 3");
  check_refused(
      {{"layers_pattern", "h"}},
      "lora.layers_to_transform: expected layers, as there is a layers_pattern, got none");
  check_refused({{"target_modules", ".*q_proj"}, {"layers_to_transform", {1}}},
                "lora.layers_to_transform: expected null where target_modules is a text, got [1]");
  check_refused({{"use_dora", true}, {"lora_bias", true}},
                "lora.lora_bias: expected false with use_dora, got true");
  check_refused({{"lora_dropout", 0.1}},
                "lora: expected lora_dropout in [0, 0], got 0.1; the layers here have no dropout");
}

TEST_CASE("lora rules: a search without an end is refused", "[decoder]") {
  const LoraRules rules = rules_of({{"target_modules", "(([a-z_.0-9]*)*)*[X-Z]"}});
  const std::string name = "model.layers.0.self_attn.q_proj";
  CHECK_THROWS_TEXT(rules.targets(name, detail::ModuleKind::kLinear), ConfigError,
                    "lora.target_modules: expected a pattern that ends its search within 100000 "
                    "steps, got '(([a-z_.0-9]*)*)*[X-Z]' on '" +
                        name + "'");
}

}  // namespace prefopt::test_lora_rules
