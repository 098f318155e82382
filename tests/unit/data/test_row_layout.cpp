// SPDX-License-Identifier: Apache-2.0
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "data/row_preparation.h"
#include "prefopt/data/data_check.h"
#include "prefopt/data/dataset.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/temp_dir.h"

namespace prefopt {
namespace {

using json = nlohmann::json;
using testing_support::put;
using testing_support::TempDir;

constexpr int kRowsOfALayout = 20;

/// Text of a question, an answer or a system prompt: no two are alike, and some hold what breaks
/// naive readers.
std::string said(const std::string& what, int i) {
  const char* const odd[] = {"", " \"so\"", "\nnext line", " caf\u00e9 \u6771", " \\n {x}"};
  return what + " " + std::to_string(i * 7 % 20) + odd[i % 5];
}

// ChatML, written down once more.
std::string turn(const std::string& role, const std::string& text) {
  return "<|im_start|>" + role + "\n" + text + "<|im_end|>\n";
}
std::string asked(const std::string& turns) { return turns + "<|im_start|>assistant\n"; }
std::string answered(const std::string& text) { return text + "<|im_end|>"; }

json message(const std::string& role, const std::string& text) {
  return {{"role", role}, {"content", text}};
}
json shared(const std::string& from, const std::string& value) {
  return {{"from", from}, {"value", value}};
}

const Tokenizer& small_tokenizer() {
  static const auto tokenizer = make_tokenizer(PREFOPT_TEST_DATA_DIR "/tokenizers/smollm2");
  return *tokenizer;
}

/// All of it: decode() leaves out the tokens of a chat format.
std::string spelled_by(const std::vector<std::int64_t>& ids) {
  std::string text;
  for (const std::int64_t id : ids) text += small_tokenizer().spelling(id);
  return text;
}

std::string lines_of(const std::vector<json>& rows) {
  std::string text;
  for (const json& row : rows) text += row.dump() + "\n";
  return text;
}

struct Texts {
  std::string prompt, chosen, rejected;
};

DataOptions chat_options(const std::string& columns = "{}") {
  return {.max_prompt_length = 0,
          .max_length = 0,
          .unusable = RowAction::kError,
          .identical = RowAction::kError,
          .chat_format = "chatml",
          .columns = columns};
}

Dataset load_rows(const std::string& text, const DataOptions& options, const RowNeeds& needs = {}) {
  const TempDir dir;
  put(dir.file("rows.jsonl"), text);
  return load_dataset(dir.file("rows.jsonl"), small_tokenizer(), options, needs);
}

/// Checks that the rows become the tokens of these texts, recognized and under a preset.
void check_texts(const std::vector<json>& rows, const std::vector<Texts>& expected,
                 const std::string& preset, const RowNeeds& needs = {}) {
  for (const std::string& columns : {std::string("{}"), "\"" + preset + "\""}) {
    INFO(columns);
    const Dataset dataset = load_rows(lines_of(rows), chat_options(columns), needs);
    REQUIRE(dataset.pairs.size() == expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      INFO("row " << i << ": " << rows[i].dump());
      const TokenRow& pair = dataset.pairs[i];
      CHECK(spelled_by(pair.prompt) == expected[i].prompt);
      CHECK(pair.prompt == small_tokenizer().encode(expected[i].prompt));
      CHECK(pair.chosen == small_tokenizer().encode(expected[i].chosen));
      CHECK(pair.rejected == small_tokenizer().encode(expected[i].rejected));
    }
  }
}

/// The texts of one pair in ChatML.
Texts texts_of(const json& row, const std::string& columns = "{}", const RowNeeds& needs = {}) {
  const Dataset dataset = load_rows(row.dump(), chat_options(columns), needs);
  REQUIRE(dataset.pairs.size() == 1);
  const TokenRow& pair = dataset.pairs.front();
  return {spelled_by(pair.prompt), spelled_by(pair.chosen), spelled_by(pair.rejected)};
}

void check_row(const json& row, const Texts& expected, const std::string& columns = "{}",
               const RowNeeds& needs = {}) {
  INFO(row.dump());
  const Texts got = texts_of(row, columns, needs);
  CHECK(got.prompt == expected.prompt);
  CHECK(got.chosen == expected.chosen);
  CHECK(got.rejected == expected.rejected);
}

/// The sentence of a row that is refused, without its place.
std::string refusal_of(const std::string& row, const DataOptions& options = chat_options(),
                       const RowNeeds& needs = {}) {
  const TempDir dir;
  const std::string path = dir.file("rows.jsonl");
  put(path, row);
  try {
    load_dataset(path, small_tokenizer(), options, needs);
  } catch (const Error& error) {
    const std::string text = error.what();
    const std::string place = path + ":1: ";
    return text.starts_with(place) ? text.substr(place.size()) : text;
  }
  return "(nothing thrown)";
}

const RowNeeds kOne{.rejected = false};
const RowNeeds kLabelledOne{.rejected = false, .columns = {Column::kLabel}};

json pair_row(const json& more) {
  json row = {{"chosen", "yes"}, {"rejected", "no"}};
  if (!more.is_null()) row.update(more);
  return row;
}

constexpr const char* kUnreadHint =
    ", which nothing reads; name what it is in data.columns, or leave it out with data.unused = "
    "'note'";

std::string unread(const std::string& column) {
  return "expected every column of a prompt to be read, got '" + column + "'" + kUnreadHint;
}

}  // namespace

TEST_CASE("rows of Orca: system, question, chosen, rejected", "[data]") {
  std::vector<json> rows;
  std::vector<Texts> expected;
  for (int i = 0; i < kRowsOfALayout; ++i) {
    const bool has_system = i % 3 != 0;  // an empty system text does not count
    rows.push_back({{"system", has_system ? said("Be like", i) : ""},
                    {"question", said("What is", i)},
                    {"chosen", said("The answer is", i)},
                    {"rejected", said("The answer is not", i)}});
    expected.push_back({asked((has_system ? turn("system", said("Be like", i)) : "") +
                              turn("user", said("What is", i))),
                        answered(said("The answer is", i)),
                        answered(said("The answer is not", i))});
  }
  check_texts(rows, expected, "orca");
  const TempDir dir;
  put(dir.file("rows.jsonl"), lines_of(rows));
  CHECK(check_data({dir.file("rows.jsonl")}, {}, small_tokenizer(), {.data = chat_options()})
            .train.read == std::map<std::string, std::int64_t>{
                               {"chosen", 20}, {"question", 20}, {"rejected", 20}, {"system", 13}});
}

TEST_CASE("rows of Alpaca: instruction, input, and output or a pair", "[data]") {
  std::vector<json> pairs, single;
  std::vector<Texts> expected_pairs, expected_single;
  for (int i = 0; i < kRowsOfALayout; ++i) {
    json row = {{"instruction", said("Sort", i)}, {"input", i % 2 ? said("of", i) : ""}};
    std::string question = said("Sort", i) + (i % 2 ? "\n" + said("of", i) : "");
    std::string turns = turn("user", question);
    if (i % 5 == 3) {
      row["system"] = said("Be", i);
      row["history"] = json::array({json::array({"Before?", said("Then", i)})});
      turns = turn("system", said("Be", i)) + turn("user", "Before?") +
              turn("assistant", said("Then", i)) + turns;
    }
    pairs.push_back(row);
    pairs.back().update({{"chosen", said("Good", i)}, {"rejected", said("Bad", i)}});
    single.push_back(row);
    single.back()["output"] = said("Good", i);
    expected_pairs.push_back({asked(turns), answered(said("Good", i)), answered(said("Bad", i))});
    expected_single.push_back({asked(turns), answered(said("Good", i)), ""});
  }
  check_texts(pairs, expected_pairs, "alpaca");
  check_texts(single, expected_single, "alpaca", kOne);
}

TEST_CASE("rows of ShareGPT: conversations of from and value", "[data]") {
  std::vector<json> rows;
  std::vector<Texts> expected;
  for (int i = 0; i < kRowsOfALayout; ++i) {
    json talk = json::array();
    std::string turns;
    if (i % 4 == 1) {
      talk.push_back(shared("system", said("Be", i)));
      turns += turn("system", said("Be", i));
    }
    if (i % 4 == 2) {
      talk.push_back(shared("human", "Hello"));
      talk.push_back(shared("gpt", said("Hello", i)));
      turns += turn("user", "Hello") + turn("assistant", said("Hello", i));
    }
    talk.push_back(shared(i % 2 ? "human" : "user", said("Why", i)));
    turns += turn("user", said("Why", i));
    json row = {{"conversations", talk},
                {"chosen", shared("gpt", said("Since", i))},
                {"rejected", shared("gpt", said("No", i))}};
    if (i % 4 == 3) {  // lists instead of one object
      row["chosen"] = json::array({row["chosen"]});
      row["rejected"] = json::array({row["rejected"]});
    }
    rows.push_back(row);
    expected.push_back({asked(turns), answered(said("Since", i)), answered(said("No", i))});
  }
  check_texts(rows, expected, "sharegpt");
}

TEST_CASE("rows of UltraFeedback: lists that repeat the prompt, scores", "[data]") {
  std::vector<json> rows;
  std::vector<Texts> expected;
  for (int i = 0; i < kRowsOfALayout; ++i) {
    const json ask = message("user", said("Write", i));
    const json good = json::array({ask, message("assistant", said("Well", i))});
    rows.push_back({{"prompt", said("Write", i)},
                    {"prompt_id", "id-" + std::to_string(i)},
                    {"chosen", good},
                    {"rejected", json::array({ask, message("assistant", said("Ill", i))})},
                    {"messages", good},
                    {"score_chosen", 8.5},
                    {"score_rejected", i % 2 ? json(6) : json()}});
    expected.push_back({asked(turn("user", said("Write", i))), answered(said("Well", i)),
                        answered(said("Ill", i))});
  }
  check_texts(rows, expected, "ultrafeedback");

  const Dataset scored = load_rows(lines_of(rows),
                                   [] {
                                     DataOptions options = chat_options();
                                     options.unusable = RowAction::kDrop;
                                     return options;
                                   }(),
                                   {.columns = {Column::kMargin}});
  REQUIRE(scored.pairs.size() == kRowsOfALayout / 2);
  CHECK(scored.pairs[0].columns[Column::kMargin] == 2.5);
  CHECK(scored.report.unread ==
        std::map<std::string, std::int64_t>{{"prompt_id", 10}});  // messages repeat chosen
}

TEST_CASE("rows of OpenAI: input.messages and two outputs", "[data]") {
  std::vector<json> rows;
  std::vector<Texts> expected;
  for (int i = 0; i < kRowsOfALayout; ++i) {
    json talk = json::array();
    std::string turns;
    if (i % 2) {
      talk.push_back(message(i % 4 == 1 ? "developer" : "system", said("Be", i)));
      turns += turn("system", said("Be", i));
    }
    const json parts = json::array(
        {{{"type", "text"}, {"text", said("How", i)}}, {{"type", "text"}, {"text", " now"}}});
    talk.push_back({{"role", "user"}, {"content", i % 3 ? json(said("How", i) + " now") : parts}});
    turns += turn("user", said("How", i) + " now");
    rows.push_back(
        {{"input", {{"messages", talk}, {"tools", json::array()}, {"parallel_tool_calls", true}}},
         {"preferred_output", json::array({message("assistant", said("So", i))})},
         {"non_preferred_output", json::array({message("assistant", said("Not so", i))})}});
    expected.push_back({asked(turns), answered(said("So", i)), answered(said("Not so", i))});
  }
  check_texts(rows, expected, "openai");
}

TEST_CASE("rows of hh-rlhf: dialogues in text", "[data]") {
  std::vector<json> rows;
  std::vector<std::string> prompts, good, bad;
  for (int i = 0; i < kRowsOfALayout; ++i) {
    const std::string earlier =
        i % 2 ? "\n\nHuman: Hello\n\nAssistant: " + said("Hello", i) : std::string();
    prompts.push_back(earlier + "\n\nHuman: " + said("May I", i) + "\n\nAssistant:");
    good.push_back(" " + said("Yes", i));
    bad.push_back(" " + said("Never", i));
    rows.push_back(
        {{"chosen", prompts.back() + good.back()}, {"rejected", prompts.back() + bad.back()}});
  }
  const Dataset dataset = load_rows(lines_of(rows), chat_options());
  REQUIRE(dataset.pairs.size() == kRowsOfALayout);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    CHECK(spelled_by(dataset.pairs[i].prompt).ends_with(prompts[i]));
    CHECK(spelled_by(dataset.pairs[i].chosen).starts_with(good[i]));
    CHECK(spelled_by(dataset.pairs[i].rejected).starts_with(bad[i]));
  }
  CHECK(dataset.report.summary().empty());
}

TEST_CASE("rows of PKU-SafeRLHF, SHP and NeMo: the better one is chosen", "[data]") {
  for (const int better : {0, 1}) {
    const Texts pair = {asked(turn("user", "Q?")), answered(better == 0 ? "a" : "b"),
                        answered(better == 0 ? "b" : "a")};
    check_row({{"prompt", "Q?"},
               {"response_0", "a"},
               {"response_1", "b"},
               {"better_response_id", better},
               {"safer_response_id", 1 - better},
               {"is_response_0_safe", true}},
              pair);
    check_row({{"history", "Q?"},
               {"human_ref_A", "a"},
               {"human_ref_B", "b"},
               {"labels", 1 - better},
               {"score_A", 3}},
              pair);
    const auto ranked = [](int rank, const std::string& text) {
      return json{{"rank", rank}, {"completion", json::array({message("assistant", text)})}};
    };
    check_row({{"context", json::array({message("user", "Q?")})},
               {"completions", json::array({ranked(better, "a"), ranked(7, "worst"),
                                            ranked(1 - better, "b"), ranked(5, "c")})}},
              {asked(turn("user", "Q?")), pair.chosen, answered("worst")}, "\"completions\"");
  }
  CHECK(refusal_of(R"({"prompt": "Q", "response_0": "a", "response_1": "b",
                       "better_response_id": 2})")
            .starts_with("expected JSON, got "));  // a row is a line
  CHECK(refusal_of(R"({"prompt": "Q", "response_0": "a", "response_1": "b", )"
                   R"("better_response_id": 2})") ==
        "expected 'better_response_id' to be 0 or 1, got 2");
  CHECK(refusal_of(R"({"response_0": "a", "response_1": "b", "better_response_id": 1})") ==
        "expected a column with the prompt of 'response_1', got none");
  CHECK(refusal_of(R"({"history": "Q", "human_ref_A": "a", "human_ref_B": "b", "labels": NaN})") ==
        "expected 'labels' free of NaN and Infinity (not a number), got one of them");
  CHECK(refusal_of(R"({"context": "Q", "completions": [{"rank": 0, "completion": "a"}, )"
                   R"({"rank": 0, "completion": "b"}]})") ==
        "expected 'completions' of two ranks at least, got one");
}

TEST_CASE("a question, an instruction or a system text makes a conversation", "[data]") {
  const Texts plain = {asked(turn("user", "Q?")), answered("yes"), answered("no")};
  const Texts led = {asked(turn("system", "S") + turn("user", "Q?")), answered("yes"),
                     answered("no")};
  check_row(pair_row({{"question", "Q?"}}), plain);
  check_row(pair_row({{"instruction", "Q?"}, {"input", nullptr}}), plain);
  check_row(pair_row({{"input", "Q?"}}), plain);
  check_row(pair_row({{"system", "S"}, {"prompt", "Q?"}}), led);
  check_row(pair_row({{"system_prompt", "S"}, {"question", "Q?"}}), led);
  check_row(pair_row({{"system", "S"}, {"prompt", json::array({message("user", "Q?")})}}), led);
  // A system text that the messages have already is no second one.
  check_row(pair_row({{"system", "S"},
                      {"prompt", json::array({message("system", "S"), message("user", "Q?")})}}),
            led);
  const json whole = json::array({message("user", "Q?"), message("assistant", "yes")});
  const json other = json::array({message("user", "Q?"), message("assistant", "no")});
  check_row({{"system", "S"}, {"chosen", whole}, {"rejected", other}}, led);
  check_row({{"question", "Q?"}, {"chosen", whole}, {"rejected", other}}, plain);
  check_row({{"system", "S"}, {"question", "Q?"}, {"answer", "yes"}}, {led.prompt, led.chosen, ""},
            "{}", kOne);
  check_row({{"messages", whole}, {"system", "S"}}, {led.prompt, led.chosen, ""}, "{}", kOne);
  // Without a system text or a question, text stays text.
  CHECK(texts_of(pair_row({{"prompt", "Q?"}, {"system", ""}})).prompt.ends_with("Q?"));

  // A multi-turn context before answers that are text.
  check_row(pair_row({{"messages", json::array({message("user", "A"), message("assistant", "B"),
                                                message("user", "C")})}}),
            {asked(turn("user", "A") + turn("assistant", "B") + turn("user", "C")), answered("yes"),
             answered("no")});
  check_row({{"prompt", "Q?"},
             {"chosen", message("assistant", "yes")},
             {"rejected", message("assistant", "no")}},
            plain);
  check_row({{"question", "Q?"}, {"answers", {{"chosen", "yes"}, {"rejected", "no"}}}}, plain);
  check_row(pair_row({{"prompt", "C"},
                      {"history", json::array({message("user", "A"), message("assistant", "B")})}}),
            {asked(turn("user", "A") + turn("assistant", "B") + turn("user", "C")), answered("yes"),
             answered("no")});
  // The conversation ends with the chosen answer.
  check_row(pair_row({{"messages", whole}}), plain);
}

TEST_CASE("a conversation with a label is a prompt and its last answer", "[data]") {
  const json row = {{"conversations", json::array({shared("human", "A"), shared("gpt", "B"),
                                                   shared("human", "C"), shared("gpt", "D")})},
                    {"kto_tag", true}};
  const Texts split = {asked(turn("user", "A") + turn("assistant", "B") + turn("user", "C")),
                       answered("D"), ""};
  check_row(row, split, "{}", kLabelledOne);
  CHECK(load_rows(row.dump(), chat_options(), kLabelledOne).pairs[0].columns[Column::kLabel] == 1);
  // Supervised training takes all of it.
  check_row(
      row,
      {asked(turn("user", "A")),
       answered("B") + "\n" + turn("user", "C") + "<|im_start|>assistant\n" + answered("D"), ""},
      "{}", kOne);
  CHECK(refusal_of(R"({"messages": [{"role": "user", "content": "A"}], "label": 1})",
                   chat_options(), kLabelledOne) ==
        "expected 'messages' to end with the assistant's answer to another turn, got fewer turns");
}

TEST_CASE("roles and contents under other names", "[data]") {
  const Texts pair = {asked(turn("system", "S") + turn("user", "Q?")), answered("yes"),
                      answered("no")};
  for (const auto& [user, assistant] : {std::pair{"Human", "Assistant"},
                                        {"User", "bot"},
                                        {"prompter", "MODEL"},
                                        {"human", "gpt"}}) {
    check_row(
        {{"chosen",
          json::array({message("System", "S"), message(user, "Q?"), message(assistant, "yes")})},
         {"rejected",
          json::array({message("System", "S"), message(user, "Q?"), message(assistant, "no")})}},
        pair);
  }
  const std::string columns =
      R"({"messages": "talk.turns", "chosen": "best", "rejected": "worst", "role_key": "speaker",
          "content_key": "says", "user": ["client", "guest"], "assistant": "agent",
          "system_role": "director"})";
  const auto says = [](const std::string& who, const std::string& text) {
    return json{{"speaker", who}, {"says", text}};
  };
  check_row({{"talk", {{"turns", json::array({says("director", "S"), says("guest", "Q?")})}}},
             {"best", says("agent", "yes")},
             {"worst", says("agent", "no")}},
            pair, columns);
  CHECK(refusal_of(json{{"messages", json::array({message("narrator", "x")})}}.dump(),
                   chat_options(), kOne) ==
        "expected a role 'system', 'user' or 'assistant' in 'messages', got 'narrator'");
}

TEST_CASE("contents in parts are joined where all are text", "[data]") {
  const auto row = [](const json& content) {
    return pair_row({{"prompt", json::array({{{"role", "user"}, {"content", content}}})}});
  };
  const Texts pair = {asked(turn("user", "Q?")), answered("yes"), answered("no")};
  check_row(row(json::array({{{"type", "text"}, {"text", "Q"}}, {{"text", "?"}}})), pair);
  check_row(row(json::array({{{"type", "input_text"}, {"text", "Q?"}, {"image_url", nullptr}}})),
            pair);
  check_row(row(json::array({"Q", "?"})), pair);
  check_row(row({{"type", "text"}, {"text", "Q?"}}), pair);
  CHECK(refusal_of(row(json::array({{{"type", "text"}, {"text", "Q?"}},
                                    {{"type", "image_url"}, {"image_url", {{"url", "u"}}}}}))
                       .dump()) ==
        "expected the parts of a content in 'prompt' to be text, got one of the type 'image_url'");
  CHECK(refusal_of(row(json::array({3})).dump()) ==
        "expected the parts of a content in 'prompt' to be objects, got number");
}

TEST_CASE("a prompt column that nothing reads is an error by its name", "[data]") {
  const std::vector<std::pair<json, std::string>> rows = {
      {pair_row({{"query", "Q?"}}), "query"},
      {pair_row({{"prompt", "Q?"}, {"context", "Read this."}}), "context"},
      {pair_row({{"prompt", "Q?"}, {"images", json::array({"a.png"})}}), "images"},
      {pair_row({{"prompt", "Q?"}, {"tools", json::array({{{"name", "f"}}})}}), "tools"},
      {pair_row({{"prompt", "Q?"}, {"question", "Another?"}}), "question"},
      {pair_row({{"system", "S"}}), "system"},  // before the words that both answers share?
      {pair_row({{"history", "Before."}, {"prompt", "Q?"}}), "history"},
      {{{"text", "All of it."}, {"instruction", "Do."}}, "instruction"},
      {{{"messages", json::array({message("user", "A"), message("assistant", "B")})},
        {"prompt", "Another"}},
       "prompt"},
      {{{"prompt", "Another"},
        {"chosen", json::array({message("user", "A"), message("assistant", "B")})},
        {"rejected", json::array({message("user", "A"), message("assistant", "C")})}},
       "prompt"},
      {pair_row({{"prompt", json::array({message("system", "S"), message("user", "Q?")})},
                 {"system", "T"}}),
       "system"},
      {pair_row({{"messages", json::array({message("user", "A"), message("assistant", "B")})}}),
       "messages"},
      {pair_row({{"prompt", json::array({{{"role", "user"},
                                          {"content", "Q?"},
                                          {"images", json::array({"a.png"})}}})}}),
       "prompt[].images"},
  };
  for (const auto& [row, column] : rows) {
    INFO(row.dump());
    const RowNeeds needs{.rejected = row.contains("rejected")};
    CHECK(refusal_of(row.dump(), chat_options(), needs) == unread(column));
    DataOptions lenient = chat_options();
    lenient.unused = UnusedColumns::kNote;
    lenient.unusable = RowAction::kDrop;  // without it, a prompt may be empty
    const std::string other = needs.rejected ? R"({"prompt": "p", "chosen": "c", "rejected": "d"})"
                                             : R"({"prompt": "p", "completion": "x"})";
    const Dataset noted = load_rows(row.dump() + "\n" + other, lenient, needs);
    CHECK(noted.report.unread.at(column) == 1);
    CHECK(noted.report.summary().find("text that nothing reads: '" + column + "' (50 % of") !=
          std::string::npos);
  }
  CHECK_THROWS_TEXT(parse_row(R"({"query": "Q", "chosen": "a", "rejected": "b"})", "f:1"),
                    DataError, "f:1: " + unread("query"));
  // Blank text, numbers and repeated text are no loss.
  for (const json& more : {json{{"context", " "}}, json{{"context", 3}}, json{{"query", nullptr}},
                           json{{"question", "Q?"}}, json{{"images", json::array()}}}) {
    json row = pair_row({{"prompt", "Q?"}});
    row.update(more);
    CHECK(load_rows(row.dump(), chat_options()).report.unread.empty());
  }
}

TEST_CASE("other text that nothing reads is counted", "[data]") {
  const std::string rows = lines_of({pair_row({{"prompt", "a"}, {"source", "web"}, {"id", 3}}),
                                     pair_row({{"prompt", "b"}, {"source", "book"}}),
                                     pair_row({{"prompt", "c"}, {"meta", {{"by", "me"}}}}),
                                     pair_row({{"prompt", "d"}, {"vector", {1, 2}}})});
  CHECK(load_rows(rows, chat_options()).report.summary() ==
        "text that nothing reads: 'meta' (25 % of the rows), 'source' (50 % of the rows)");
  const TempDir dir;
  put(dir.file("rows.jsonl"),
      rows + R"({"query": "e", "chosen": "say yes", "rejected": "say no"})");
  const RowsCheck check =
      check_data({dir.file("rows.jsonl")}, {}, small_tokenizer(), {.data = chat_options()}).train;
  CHECK(check.unread ==
        std::map<std::string, std::int64_t>{{"meta", 1}, {"query", 1}, {"source", 2}});
  CHECK(check.usable == 4);
  REQUIRE(check.defects.size() == 1);
  CHECK(check.defects[0].defect == "'query', a column of prompts, is read by nothing");
  CHECK(check.defects[0].option == "unused");

  // The token cache keeps the counts.
  put(dir.file("rows.jsonl"), rows);
  DataOptions options = chat_options();
  options.token_cache = dir.file("tokens");
  const auto load = [&] {
    return load_dataset(dir.file("rows.jsonl"), small_tokenizer(), options);
  };
  const auto made = load().report;
  const auto kept = load().report;
  CHECK(kept.cache_note.starts_with("tokens are those kept in "));
  CHECK(kept.unread == made.unread);
}

TEST_CASE("data.columns says what columns are", "[data]") {
  const Texts pair = {asked(turn("system", "S") + turn("user", "Q?")), answered("yes"),
                      answered("no")};
  check_row(
      {{"anfrage", "Q?"}, {"rolle", "S"}, {"gut", "yes"}, {"schlecht", "no"}}, pair,
      R"({"question": "anfrage", "system": "rolle", "chosen": "gut", "rejected": "schlecht"})");
  check_row({{"a", {{"b", {{"c", "Q?"}}}}}, {"a.s", "S"}, {"chosen", "yes"}, {"rejected", "no"}},
            pair, R"({"question": "a.b.c", "system": "a.s"})");
  // Names that stand for others elsewhere.
  check_row(
      {{"chosen", "no"}, {"rejected", "yes"}, {"prompt", "S"}, {"input", "Q?"}}, pair,
      R"({"chosen": "rejected", "rejected": "chosen", "system": "prompt", "question": "input"})");
  // A prompt stays text, a label and a margin may have other names.
  const Dataset labelled =
      load_rows(json{{"frage", "Q?"}, {"antwort", "yes"}, {"gut", 0}}.dump(),
                chat_options(R"({"prompt": "frage", "completion": "antwort", "label": "gut"})"),
                kLabelledOne);
  CHECK(labelled.pairs.at(0).columns[Column::kLabel] == 0);
  CHECK(spelled_by(labelled.pairs[0].prompt).ends_with("Q?"));
  CHECK(load_rows(pair_row({{"prompt", "a"}, {"gap", 3}, {"margin", 1}}).dump(),
                  chat_options(R"({"margin": "gap"})"), {.columns = {Column::kMargin}})
            .pairs.at(0)
            .columns[Column::kMargin] == 3);
}

TEST_CASE("data.columns that cannot be meant", "[data]") {
  const std::string row = pair_row({{"question", "Q?"}, {"prompt", "P"}}).dump();
  const auto refused = [&](const std::string& columns) {
    return refusal_of(row, chat_options(columns));
  };
  CHECK(refused(R"({"promt": "question"})") ==
        "load_dataset: columns: expected a known field, got 'promt'; did you mean 'prompt'?");
  CHECK(refused(R"("orka")") ==
        "load_dataset: columns: expected the columns of fields or one of orca, alpaca, sharegpt, "
        "openai, pku, shp, ultrafeedback, completions, got 'orka'; did you mean 'orca'?");
  CHECK(refused(R"({"prompt": 3})") ==
        "load_dataset: columns: expected prompt to be the name of a column, got 3");
  CHECK(refused(R"({"user": []})") ==
        "load_dataset: columns: expected user to be a name or a list of names, got []");
  CHECK(refused(R"({"user": "x", "assistant": ["y", "x"]})") ==
        "load_dataset: columns: expected each role once, got 'x' twice");
  CHECK(refused("[1]") ==
        "load_dataset: columns: expected a preset's name or the columns of fields, got [1]");
  CHECK(refused(R"({"system": "sytem", "question": "question"})").find(unread("prompt")) !=
        std::string::npos);

  DataOptions lenient = chat_options(R"({"system": "quesion", "prompt": "prompt"})");
  lenient.unused = UnusedColumns::kNote;
  const std::string unknown = refusal_of(row, lenient);
  CHECK(
      unknown.ends_with("rows.jsonl: expected a column 'quesion', which data.columns.system "
                        "names, got no row that has it; did you mean 'question'?"));

  // A column that some rows lack: those would be read as others.
  CHECK(refusal_of(pair_row({}).dump(), chat_options(R"({"prompt": "question"})")) ==
        "expected the column 'question' of data.columns.prompt, got a row without it");
  CHECK(refusal_of(pair_row({{"prompt", "P"}}).dump(), chat_options("\"orca\"")) ==
        "expected the columns of the layout 'orca' (question, and chosen and rejected or "
        "response), got no prompt");
  CHECK(refusal_of(pair_row({{"prompt", "P"}}).dump(), chat_options("\"pku\"")) ==
        "expected the columns of the layout 'pku' (prompt, response_0, response_1 and "
        "better_response_id), got others");
  CHECK(refusal_of(pair_row({{"question", " "}}).dump()) ==
        "expected 'question' to have a text, got none");
  CHECK(refusal_of(pair_row({{"question", 3}}).dump()) ==
        "expected 'question' to be text, got number");

  const auto options =
      options_from_json<DataOptions>(R"({"columns": {"question": "q"}, "unused": "note"})", "data");
  CHECK(options.columns == R"({"question":"q"})");
  CHECK(options.unused == UnusedColumns::kNote);
}

TEST_CASE("what is wrong with a row is said by the columns of its file", "[data]") {
  const json texts = {"a", "b"};
  CHECK(refusal_of(json{{"instruction", "Q?"}, {"output", texts}}.dump(), chat_options(), kOne) ==
        "expected each message of 'output' to be an object, got text");
  CHECK(refusal_of(json{{"conversations", texts}}.dump(), chat_options(), kOne) ==
        "expected each message of 'conversations' to be an object, got text");
  CHECK(refusal_of(json{{"prompt", "P"}, {"gut", 1}, {"schlecht", "no"}}.dump(),
                   chat_options(R"({"chosen": "gut", "rejected": "schlecht"})")) ==
        "expected 'gut' to be text or a list of messages, got number");
  CHECK(refusal_of(json{{"frage", json::array({message("user", "Q")})}, {"antwort", 1}}.dump(),
                   chat_options(R"({"prompt": "frage", "completion": "antwort"})"),
                   kOne) == "expected 'antwort' to be text or a list of messages, got number");
  CHECK(refusal_of(json{{"prompt", "P"}, {"completion", "C"}, {"kto_tag", 2}}.dump(),
                   chat_options(),
                   kLabelledOne) == "expected 'kto_tag' to be a number in [0, 1], got 2");
  CHECK(refusal_of(pair_row({{"prompt", "P"}, {"gap", "x"}}).dump(),
                   chat_options(R"({"margin": "gap"})"),
                   {.columns = {Column::kMargin}}) == "expected 'gap' to be a number, got \"x\"");
  // JSON cannot write it, Python does.
  CHECK(refusal_of(R"({"question": "Q", "response": [{"role": "assistant", "content": NaN}]})",
                   chat_options(), kOne) ==
        "expected 'response' free of NaN and Infinity (not a number), got one of them");
}

TEST_CASE("rows of two layouts are refused by both names", "[data]") {
  const std::string hint = "; name one in data.columns";
  json row = pair_row({{"prompt", "Q"}, {"preferred_output", "a"}, {"non_preferred_output", "b"}});
  CHECK(refusal_of(row.dump()) ==
        "expected the columns of one layout, got 'chosen' and 'rejected' and 'preferred_output' "
        "and 'non_preferred_output' (openai)" +
            hint);
  row.erase("chosen");
  row.erase("rejected");
  row.update({{"response_0", "a"}, {"response_1", "b"}, {"better_response_id", 0}});
  CHECK(refusal_of(row.dump()).find("(openai) and 'response_0'") != std::string::npos);
  check_row(row, {asked(turn("user", "Q")), answered("a"), answered("b")}, "\"pku\"");
  CHECK(
      refusal_of(json{{"instruction", "Q"},
                      {"output", "a"},
                      {"messages", json::array({message("user", "Q"), message("assistant", "b")})}}
                     .dump(),
                 chat_options(), kOne) ==
      "expected the columns of one layout, got an instruction or question with its answer "
      "(alpaca, orca) and a whole conversation (messages, sharegpt)" +
          hint);
  CHECK(refusal_of(json{{"question", "Q"}, {"answer", "a"}, {"response", "b"}}.dump(),
                   chat_options(),
                   kOne) == "expected one answer, got 'response' and 'answer'" + hint);
  CHECK(refusal_of(json{{"messages", json::array({message("user", "a")})},
                        {"conversations", json::array({message("user", "b")})}}
                       .dump(),
                   chat_options(),
                   kOne) == "expected one conversation, got 'messages' and 'conversations'" + hint);
}

TEST_CASE("calls of functions are turns of the assistant", "[data]") {
  const auto talk = [](const std::string& call) {
    return json{
        {"conversations", json::array({shared("human", "Q"), shared("function_call", call),
                                       shared("observation", "12"), shared("gpt", "Twelve")})}};
  };
  CHECK(refusal_of(talk("no JSON").dump(), chat_options(), kOne) ==
        "expected a function call in 'conversations' to be JSON with a 'name', got \"no JSON\"");
  // No format here has a text for them: a defect, whose policy may leave them out.
  const std::string call = R"({"name": "f", "arguments": {"x": 5}})";
  CHECK(refusal_of(talk(call).dump(), chat_options(), kOne).find("tool_calls or tools") !=
        std::string::npos);
  DataOptions keep = chat_options();
  keep.tool_calls = RowAction::kKeep;
  const TokenRow pair = load_rows(talk(call).dump(), keep, kOne).pairs.at(0);
  CHECK(spelled_by(pair.prompt) == asked(turn("user", "Q")));
  CHECK(spelled_by(pair.chosen) ==
        "<|im_end|>\n" + turn("tool", "12") + "<|im_start|>assistant\n" + answered("Twelve"));
}

TEST_CASE("NaN and Infinity are a defect of what is read, and no other", "[data]") {
  const auto named = [&](const std::string& column) {
    return "expected '" + column + "' free of NaN and Infinity (not a number), got one of them";
  };
  CHECK(refusal_of(R"({"prompt": "a", "chosen": NaN, "rejected": "b"})") == named("chosen"));
  CHECK(refusal_of(R"({"prompt_ids": [1], "chosen_ids": [-Infinity], "rejected_ids": [2]})") ==
        named("chosen_ids"));
  CHECK(refusal_of(R"({"question": NaN, "chosen": "a", "rejected": "b"})") == named("question"));
  CHECK(refusal_of(R"({"prompt": "a", "chosen": "b", "rejected": "c", "margin": NaN})",
                   chat_options(), {.columns = {Column::kMargin}}) == named("margin"));
  const std::string unread_ones =
      R"({"prompt": "a NaN", "chosen": "Infinity \" NaN", "rejected": "c", "margin": NaN, )"
      R"("question": NaN, "meta": {"x": [-Infinity, Infinity]}})";
  const Dataset dataset = load_rows(unread_ones, chat_options());
  CHECK(dataset.report.summary().empty());
  CHECK(spelled_by(dataset.pairs.at(0).chosen).starts_with("Infinity \" NaN"));
  DataOptions dropping = chat_options();
  dropping.unusable = RowAction::kDrop;
  CHECK(
      load_rows(unread_ones + "\n" + R"({"prompt": NaN, "chosen": "a", "rejected": "b"})", dropping)
          .report.summary() ==
      "dropped 1 row: expected 'prompt' free of NaN and Infinity (not a number) (line 2)");
}

TEST_CASE("half of a surrogate pair is no UTF-8", "[data]") {
  const std::string face = "\xF0\x9F\x98\x80";
  const auto row = [](const std::string& text) {
    return R"({"prompt": "a", "chosen": ")" + text + R"(", "rejected": "b"})";
  };
  const std::pair<const char*, std::string> lone[] = {
      {R"(x\ud83d)", "x\uFFFD"},
      {R"(x\uDE00y)", "x\uFFFDy"},
      {R"(\ud83d\ud83d\ude00)", "\uFFFD" + face},
      {R"(\ud83d\\ude00)", "\uFFFD\\ude00"},
      {R"(\ud83d\u0041)",
       "\uFFFD"
       "A"},
  };
  for (const auto& [text, mended] : lone) {
    INFO(text);
    CHECK(refusal_of(row(text)).starts_with("expected UTF-8 text, got half of a surrogate pair, "));
    DataOptions keep = chat_options();
    keep.invalid_utf8 = DefectPolicy::kKeep;
    const Dataset kept = load_rows(row(text), keep);
    CHECK(kept.report.summary() == "kept 1 row: invalid UTF-8 (line 1)");
    CHECK(spelled_by(kept.pairs.at(0).chosen).starts_with(mended));
    DataOptions drop = chat_options();
    drop.invalid_utf8 = DefectPolicy::kDrop;
    CHECK(load_rows(row(text) + "\n" + row("fine"), drop).report.summary() ==
          "dropped 1 row: expected UTF-8 text (line 1)");
  }
  for (const char* whole : {R"(\ud83d\ude00)", R"(\\ud83d)", R"(\uD83D\uDE00 \u00e9)"}) {
    CHECK(load_rows(row(whole), chat_options()).report.summary().empty());
  }
}

TEST_CASE("the prompt of a row alone", "[data]") {
  const DataOptions options = chat_options();
  const auto prompt_of = [&](const json& row) {
    const TempDir dir;
    put(dir.file("f"), row.dump());
    std::vector<PreferenceRow> rows;
    detail::read_prompts(dir.file("f"), ByteTokenizer(), options,
                         [&](const PreferenceRow& read, const auto&) { rows.push_back(read); });
    return rows.at(0);
  };
  CHECK(prompt_of({{"prompt", "ab"}}).prompt == "ab");
  CHECK(prompt_of({{"prompt", "ab"}, {"id", 3}}).end_of_turn.empty());
  CHECK(prompt_of({{"prompt_ids", {1, 2}}}).prompt_ids == std::vector<std::int64_t>{1, 2});
  const std::string question = asked(turn("system", "S") + turn("user", "Q?"));
  CHECK(prompt_of({{"system", "S"}, {"question", "Q?"}}).prompt == question);
  CHECK(prompt_of({{"system", "S"}, {"prompt", "Q?"}}).prompt == question);
  CHECK(prompt_of(pair_row({{"system", "S"}, {"question", "Q?"}})).prompt == question);
  const json system = message("system", "S");
  const json user = message("user", "Q?");
  const json talk = json::array({system, user});
  const json answer = message("assistant", "A");
  CHECK(prompt_of({{"messages", talk}}).prompt == question);
  CHECK(prompt_of({{"messages", json::array({system, user, answer})}}).prompt == question);
  CHECK(prompt_of({{"input", {{"messages", talk}}}}).prompt == question);
  CHECK(prompt_of({{"prompt", talk}, {"completion", json::array({answer})}}).prompt == question);
  const TempDir dir;
  const auto refused = [&](const json& row, const std::string& text) {
    put(dir.file("f"), row.dump());
    CHECK_THROWS_TEXT(detail::read_prompts(dir.file("f"), ByteTokenizer(), options,
                                           [](const auto&, const auto&) {}),
                      DataError, dir.file("f") + ":1: " + text);
  };
  refused({{"query", "Q?"}},
          "expected a key 'chosen', 'completion', 'messages' or 'text', got {query}");
  refused({{"prompt", "Q"}, {"context", "C"}}, unread("context"));
  put(dir.file("f"), R"([{"prompt": "a"}, {"prompt": "b"}])");
  CHECK_THROWS_TEXT(
      detail::read_prompts(dir.file("f"), ByteTokenizer(), chat_options(R"({"system": "prompts"})"),
                           [](const auto&, const auto&) {}),
      ConfigError,
      dir.file("f") +
          ": expected a column 'prompts', which data.columns.system "
          "names, got no row that has it; did you mean 'prompt'?");
}

TEST_CASE("an answer in its own column follows the conversation", "[data]") {
  const json talk = json::array({shared("human", "A"), shared("gpt", "B"), shared("human", "C")});
  const json answered_talk = json::array({message("user", "A"), message("assistant", "B")});
  const Texts expected = {asked(turn("user", "A") + turn("assistant", "B") + turn("user", "C")),
                          answered("D"), ""};
  for (const char* column : {"output", "response", "answer", "completion"}) {
    check_row({{"conversations", talk}, {column, "D"}}, expected, "{}", kOne);
  }
  check_row({{"messages", talk}, {"response", message("assistant", "D")}}, expected, "{}", kOne);
  check_row({{"messages", talk}, {"response", "D"}, {"label", 1}}, expected, "{}", kLabelledOne);
  check_row({{"messages", talk}, {"target", "D"}}, expected, R"({"completion": "target"})", kOne);
  // One that the conversation ends with is the same one, another is one too many.
  check_row({{"messages", answered_talk}, {"response", "B "}},
            {asked(turn("user", "A")), answered("B"), ""}, "{}", kOne);
  const std::string two =
      "expected one answer, got that of 'messages' and 'response'; name one in data.columns";
  CHECK(refusal_of(json{{"messages", answered_talk}, {"response", "Z"}}.dump(), chat_options(),
                   kOne) == two);
  check_row({{"messages", answered_talk}, {"response", "Z"}},
            {asked(turn("user", "A")), answered("B"), ""}, R"({"messages": "messages"})", kOne);
  // A column that may be the answer which a conversation waits for, and is not read.
  CHECK(refusal_of(json{{"messages", talk}, {"target", "D"}}.dump(), chat_options(), kOne) ==
        unread("target"));
  CHECK(refusal_of(json{{"messages", talk}, {"response", "D"}}.dump(),
                   chat_options(R"({"messages": "messages"})"), kOne) == unread("response"));
  // A pair whose conversation is another one than the prompt.
  CHECK(refusal_of(pair_row({{"prompt", "Q?"}, {"messages", answered_talk}}).dump()) ==
        unread("messages"));
}

TEST_CASE("a rejected answer may stand next to the chosen one", "[data]") {
  const json talk = json::array({message("user", "A"), message("assistant", "B"),
                                 message("user", "C"), message("assistant", "D")});
  const Texts expected = {asked(turn("user", "A") + turn("assistant", "B") + turn("user", "C")),
                          answered("D"), answered("E")};
  check_row({{"messages", talk}, {"rejected_response", "E"}}, expected);
  check_row({{"messages", talk}, {"rejected_response", "E"}}, expected, "\"sharegpt\"");
  check_row({{"messages", talk}, {"rejected_response", message("assistant", "E")}}, expected);
  json open = talk;
  open.erase(3);
  check_row({{"messages", open}, {"response", "D"}, {"rejected_response", "E"}}, expected);
  check_row({{"system", "S"}, {"question", "C"}, {"answer", "D"}, {"rejected_response", "E"}},
            {asked(turn("system", "S") + turn("user", "C")), answered("D"), answered("E")});
  CHECK(
      refusal_of(json{{"messages", talk}, {"response", "Z"}, {"rejected_response", "E"}}.dump()) ==
      "expected one answer, got that of 'messages' and 'response'; name one in data.columns");
  CHECK(refusal_of(json{{"messages", open}, {"rejected_response", "E"}}.dump(), chat_options(),
                   kOne) == unread("rejected_response"));
}

TEST_CASE("a prompt that says more than the messages is not said twice", "[data]") {
  const auto lists = [](const std::string& prompt) {
    const json ask = message("user", "Where is the bus?");
    return json{{"prompt", prompt},
                {"chosen", json::array({ask, message("assistant", "Here")})},
                {"rejected", json::array({ask, message("assistant", "Gone")})}};
  };
  for (const char* more : {"Talk like a pirate. Where is the bus?", "Where is the bus? Be brief.",
                           "User: Where is the bus? Now!\nmore", "\u6771 Where is the bus?"}) {
    CHECK(refusal_of(lists(more).dump()) == unread("prompt"));
  }
  const Texts pair = {asked(turn("user", "Where is the bus?")), answered("Here"), answered("Gone")};
  for (const char* same :
       {" Where is the bus?\n", "Human: Where is the bus?\n\nAssistant:", "is the bus?",
        "<|im_start|>user\nWhere is the bus?<|im_end|>\n<|im_start|>assistant\n",
        "<s>[INST] Where is the bus? [/INST]", "Q\uFF1AWhere is the bus?"}) {
    INFO(same);
    check_row(lists(same), pair);
  }
  // The answer alone is not the prompt.
  CHECK(refusal_of(lists("Here").dump()) == unread("prompt"));
}

TEST_CASE("a text that could be the prompt that pairs lack is an error by its name", "[data]") {
  const json alike = {{"chosen", "The sky is blue."}, {"rejected", "The sky is grey."}};
  const auto with = [](json row, const std::string& column, const std::string& text) {
    row[column] = text;
    return row.dump();
  };
  for (const char* column : {"post", "article", "title", "text", "headline", "first_prompt"}) {
    CHECK(refusal_of(with(alike, column, "What is over us?")) == unread(column));
    CHECK(refusal_of(with(pair_row({}), column, "Weather?")) == unread(column));
  }
  const json lists = {{"chosen", message("assistant", "blue")},
                      {"rejected", message("assistant", "grey")}};
  CHECK(refusal_of(with(lists, "post", "Sky?")) == unread("post"));
  // A word next to a beginning of some words, or any text next to dialogues, is a remark.
  const json dialogues = {{"chosen", "\n\nHuman: Sky?\n\nAssistant: blue"},
                          {"rejected", "\n\nHuman: Sky?\n\nAssistant: grey"}};
  CHECK(load_rows(with(alike, "source", "web"), chat_options()).report.unread.at("source") == 1);
  CHECK(load_rows(with(dialogues, "title", "All about the sky"), chat_options())
            .report.unread.at("title") == 1);
  // A context is an error next to a prompt too, unless the prompt has it.
  for (const char* column : {"article", "post", "dialogue", "document_text", "Negative_Prompt"}) {
    const json row = pair_row({{"prompt", "Sum it up: The bus came at noon."}});
    CHECK(refusal_of(with(row, column, "Rain fell.")) == unread(column));
    CHECK(load_rows(with(row, column, "The bus came at noon."), chat_options())
              .report.unread.empty());
    CHECK(load_rows(with(row, "title", "Rain fell."), chat_options()).report.unread.size() == 1);
  }
}

TEST_CASE("a blank prompt is no turn", "[data]") {
  const std::string blank = "expected 'prompt' to have a text, got none";
  CHECK(refusal_of(pair_row({{"system", "S"}, {"prompt", ""}}).dump()) == blank);
  CHECK(refusal_of(json{{"prompt", " \n"},
                        {"chosen", message("assistant", "yes")},
                        {"rejected", message("assistant", "no")}}
                       .dump()) == blank);
  CHECK(refusal_of(pair_row({{"prompt", json::array({message("user", "")})}}).dump()) ==
        "expected a prompt whose last turn has a text, got an empty turn of the user");
}

TEST_CASE("a labelled conversation may go on after its last answer", "[data]") {
  const json row = {{"messages", json::array({message("user", "A"), message("assistant", "B"),
                                              message("user", "thanks")})},
                    {"label", false}};
  check_row(row, {asked(turn("user", "A")), answered("B"), ""}, "{}", kLabelledOne);
  DataOptions options = chat_options();
  CHECK(load_rows(row.dump(), options, kLabelledOne).report.kept_with.size() == 1);
  options.ends_with_user = RowAction::kError;
  CHECK(refusal_of(row.dump(), options, kLabelledOne).find("ends with the user") !=
        std::string::npos);
  CHECK(refusal_of(json{{"messages", json::array({message("user", "A"), message("assistant", "B"),
                                                  message("assistant", "C")})},
                        {"label", 1}}
                       .dump(),
                   chat_options(), kLabelledOne) ==
        "expected 'messages' to end with the assistant's answer to another turn, got two of its "
        "turns");

  // Without a loss a label makes it one completion, which is said.
  const TempDir dir;
  put(dir.file("rows.jsonl"), row.dump());
  DataCheckOptions checking{.data = chat_options()};
  CHECK(check_data({dir.file("rows.jsonl")}, {}, small_tokenizer(), checking)
            .train.assumed_labelled == 1);
  checking.needs = kLabelledOne;
  CHECK(check_data({dir.file("rows.jsonl")}, {}, small_tokenizer(), checking)
            .train.assumed_labelled == 0);
}

TEST_CASE("prompts that the policies do not keep are not answered", "[data]") {
  const TempDir dir;
  const std::string path = dir.file("f");
  const json call = {{"role", "assistant"},
                     {"content", nullptr},
                     {"tool_calls", json::array({{{"function", {{"name", "f"}}}}})}};
  const json ask = message("user", "Q?");
  const auto read = [&](const json& row, const DataOptions& options = chat_options()) {
    put(path, row.dump());
    std::vector<std::string> prompts;
    detail::read_prompts(path, ByteTokenizer(), options,
                         [&](const auto& found, const auto&) { prompts.push_back(found.prompt); });
    return prompts;
  };
  const auto refused = [&](const json& row, const std::string& defect) {
    CHECK_THROWS_TEXT(read(row), DataError,
                      path + ":1: expected a usable prompt, got one with '" + defect);
  };
  const std::string tools =
      "tool_calls or tools, for which the chat format has no text'; the option tool_calls = 'drop'";
  const json calling = {{"messages", json::array({ask, call, ask})}};
  refused(calling, tools);
  refused({{"prompt", json::array({ask})}, {"tools", json::array({{{"name", "f"}}})}}, tools);
  refused({{"chosen", json::array({ask, message("assistant", "A")})},
           {"rejected", json::array({message("user", "Other?"), message("assistant", "A")})}},
          "completions of different prompts'; the option different_prompts = 'drop'");
  DataOptions keep = chat_options();
  keep.tool_calls = RowAction::kKeep;
  CHECK(read(calling, keep).size() == 1);
  // The completions do not matter here.
  CHECK(read({{"messages", json::array({ask, message("assistant", "A"), ask})}}).size() == 1);
  // A prompt that ends with the assistant is continued.
  CHECK(read({{"prompt", json::array({ask, message("assistant", "It")})}}) ==
        std::vector<std::string>{asked(turn("user", "Q?")) + "It"});
}

}  // namespace prefopt
