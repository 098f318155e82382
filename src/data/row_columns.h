// SPDX-License-Identifier: Apache-2.0
#pragma once

// Names of columns, and the layouts that they make.

#include <array>
#include <span>
#include <string_view>
#include <vector>

namespace prefopt::detail {

inline constexpr std::array<std::string_view, 23> kColumnFields{
    "prompt",       "system",          "instruction",
    "input",        "question",        "history",
    "chosen",       "rejected",        "gold",
    "completion",   "messages",        "text",
    "label",        "margin",          "weight",
    "score_chosen", "score_rejected",  "label_prob",
    "tools",        "chosen_win_rate", "rejected_win_rate",
    "advantage",    "from_reference"};

/// Fields whose column a row has to have once the mapping names it: without it, the row would be
/// read as one of another layout.
inline constexpr std::array<std::string_view, 8> kNeededFields{
    "prompt", "instruction", "question", "chosen", "rejected", "completion", "messages", "text"};

inline constexpr std::array<std::string_view, 7> kPromptFields{
    "prompt", "system", "instruction", "input", "question", "history", "tools"};

inline constexpr std::array<std::string_view, 10> kNumberFields{
    "label",          "margin",        "weight",          "score_chosen",
    "score_rejected", "label_prob",    "chosen_win_rate", "rejected_win_rate",
    "advantage",      "from_reference"};

/// Columns that hold a part of what a model is asked, by their names.
inline constexpr std::array<std::string_view, 42> kPromptColumns{
    "prompt",      "prompts",       "system",       "system_prompt", "system_message",
    "instruction", "input",         "instructions", "inputs",        "question",
    "questions",   "query",         "problem",      "context",       "contexts",
    "history",     "passage",       "passages",     "passage_text",  "document",
    "documents",   "document_text", "article",      "articles",      "article_text",
    "post",        "body",          "dialogue",     "dialog",        "transcript",
    "tools",       "functions",     "user_message", "image",         "images",
    "video",       "videos",        "audio",        "audios",        "function_call",
    "tool_calls",  "background"};

/// Columns that hold an answer, by their names.
inline constexpr std::array<std::string_view, 14> kAnswerColumns{
    "output",      "outputs", "response",          "responses", "answer",   "answers", "completion",
    "completions", "target",  "rejected_response", "reply",     "solution", "chosen",  "assistant"};

/// Keys of a message that are read, or that say nothing of its text.
inline constexpr std::array<std::string_view, 8> kMessageKeys{
    "role", "content", "tool_calls", "tool_call_id", "name", "function_call", "weight", "id"};

/// Keys of a message with what was thought before its content was said; the first of several
/// counts, as in transformers.
inline constexpr std::array<std::string_view, 5> kReasoningKeys{"reasoning_content", "thinking",
                                                                "reasoning", "thought", "thoughts"};
/// Those that transformers looks for, in its order; the others are names in data alone.
inline constexpr std::span<const std::string_view> kTemplateReasoningKeys =
    std::span(kReasoningKeys).first(3);

// Where the prompt of a row may come from.
inline constexpr unsigned kFromPrompt = 1, kFromQuestion = 2, kFromInstruction = 4, kFromInput = 8,
                          kFromTurns = 16, kFromContext = 32, kFromPost = 64, kFromAnywhere = 127;
// The columns that may answer it.
inline constexpr unsigned kPairOfAnswers = 1, kPreferredOutput = 2, kResponses = 4, kHumanRefs = 8,
                          kRanked = 16, kOneCompletion = 32, kOneOutput = 64, kWholeTurns = 128,
                          kWholeText = 256, kReplacedAnswer = 512, kAnyAnswers = 1023;
inline constexpr unsigned kPairLayouts =
    kPairOfAnswers | kPreferredOutput | kResponses | kHumanRefs | kRanked | kReplacedAnswer;

struct Preset {
  std::string_view name;
  unsigned sources, answers;
  std::string_view columns;
};

inline constexpr std::array<Preset, 8> kPresets{{
    {"orca", kFromQuestion, kPairOfAnswers | kOneOutput | kOneCompletion,
     "question, and chosen and rejected or response"},
    {"alpaca", kFromInstruction, kPairOfAnswers | kOneOutput,
     "instruction or input, and output or chosen and rejected"},
    {"sharegpt", kFromTurns, kPairOfAnswers | kReplacedAnswer | kWholeTurns,
     "conversations, for pairs with chosen and rejected"},
    {"openai", kFromInput, kPreferredOutput | kWholeTurns,
     "input.messages, preferred_output and non_preferred_output, or messages"},
    {"pku", kFromPrompt, kResponses, "prompt, response_0, response_1 and better_response_id"},
    {"shp", kFromPost, kHumanRefs, "history, human_ref_A, human_ref_B and labels"},
    {"ultrafeedback", kFromPrompt, kPairOfAnswers | kWholeTurns,
     "prompt, chosen and rejected, or messages"},
    {"completions", kFromContext | kFromPrompt, kRanked, "context and completions"},
}};

/// As errors name the columns that answer.
std::string_view answers_text(unsigned answers);

/// Returns whether a column holds a part of what a model is asked, by its name.
bool is_prompt_column(std::string_view key);

std::vector<std::string_view> preset_names();

}  // namespace prefopt::detail
