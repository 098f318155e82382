// SPDX-License-Identifier: Apache-2.0
#pragma once

// The commands of `prefopt`, without the parsing of their arguments (main.cpp). Each writes its
// result to `out` and remarks to `err`, and throws what goes wrong; main makes an exit code of it.

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace prefopt::cli {

/// A command that a signal ended in good order; the text says what was saved.
struct Interrupted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct TrainArguments {
  std::string config;             ///< path of a JSON file
  std::vector<std::string> sets;  ///< `a.b=value`, applied in order over the file
  std::string resume;             ///< of run_training; empty: a new run
  bool print_config = false;
  bool dry_run = false;
  bool quiet = false;
  /// Columns of the terminal that progress goes to, where one line is rewritten in place; 0: no
  /// terminal, about 20 plain lines.
  std::size_t terminal_width = 0;
};
void run_train(const TrainArguments& arguments, std::ostream& out, std::ostream& err);

struct LaunchArguments {
  std::int64_t ranks = 0;
  std::int64_t max_restarts = 0;     ///< after a rank that a signal has ended
  std::vector<std::string> command;  ///< train and its options
};
/// Runs a command in several processes of this machine that train together, and writes which one a
/// signal has ended to `err`. Returns the exit code: that of the first rank that failed.
int run_launch(const LaunchArguments& arguments, std::ostream& err);

struct ReportArguments {
  std::string run;  ///< run folder
  bool print = false;
};
/// Writes the report of a run again and its path to `out`, or to `out` the page itself.
void run_report(const ReportArguments& arguments, std::ostream& out);

/// The columns of a file of rows.
struct ColumnArguments {
  std::string columns;  ///< data.columns: a preset's name, JSON or @FILE; empty: recognized
  std::string unused;   ///< data.unused; empty: error
};

/// How the rows of a file are read.
struct RowArguments : ColumnArguments {
  std::string options;  ///< data options of a run, JSON or @FILE; empty: those that it remembers
};

/// A model on disk.
struct ModelArguments {
  std::string model;    ///< Hugging Face folder or GGUF file
  std::string adapter;  ///< PEFT folder; empty: none
  std::string dtype = "keep";
  std::string device = "cpu";
  std::string tokenizer;  ///< empty: the adapter's or the model's own
  std::string chat_format = "auto";
  RowArguments rows;
};

struct DataCheckArguments {
  std::vector<std::string> data, eval;
  std::string model;      ///< whose tokenizer is taken
  std::string tokenizer;  ///< empty: the model's own, byte without a model
  std::string chat_format;
  ColumnArguments columns;
  std::string options;  ///< data options of a run, JSON or @FILE; empty: those of the model's run
  std::string loss;     ///< whose needs are checked, JSON or @FILE; empty: none
  std::optional<std::int64_t> max_prompt_length, max_completion_length, max_length;
  bool json = false;
};
/// Throws DataError after the report where rows would be refused.
void run_data_check(const DataCheckArguments& arguments, std::ostream& out, std::ostream& err);

struct ScoreArguments : ModelArguments {
  std::string data;
  std::string candidates;  ///< in place of rows, to rate each completion of a prompt
  std::string rewards;     ///< steps or tokens: log-ratios to `reference`; empty: log-probs
  std::string reference;
  std::optional<double> beta;            ///< of rewards; default 0.05
  std::optional<std::string> step_end;   ///< default: an empty line
  std::optional<std::string> aggregate;  ///< of candidates: min, mean, last or sum; default min
  bool per_token = false;
  std::int64_t batch = 8;  ///< pairs at a time
};
void run_score(const ScoreArguments& arguments, std::ostream& out, std::ostream& err);

struct LossArguments {
  std::string loss;      ///< JSON, or @FILE that holds it
  std::string logps;     ///< path of a JSONL file
  std::string rollouts;  ///< the same of an objective on tokens
};
void run_loss(const LossArguments& arguments, std::ostream& out);
/// Evaluates an objective, or a loss, on tokens on `rollouts`.
void run_rollout_loss(const LossArguments& arguments, std::ostream& out);

struct GradArguments : ModelArguments {
  std::string reference, data;
  std::string loss;        ///< JSON, or @FILE that holds it
  std::int64_t micro = 0;  ///< pairs at a time; 0: all. Changes memory, not the result
  std::int64_t seed = 0;   ///< of the fresh samples, for losses that need them
};
void run_grad(const GradArguments& arguments, std::ostream& out, std::ostream& err);

struct LossesArguments {
  std::string name;  ///< empty: the table of all
  bool json = false;
};
/// A list of JSON has losses on rows alone, which `err` says.
void run_losses(const LossesArguments& arguments, std::ostream& out, std::ostream& err);

struct GenerateArguments : ModelArguments {
  std::vector<std::string> prompts;     ///< texts to continue
  std::vector<std::string> messages;    ///< of a user, each the first turn of a conversation
  std::optional<std::string> system;    ///< message before each of them
  std::string data;                     ///< in place of prompts and messages
  std::vector<std::string> end_tokens;  ///< ids, or texts of one token; none: see end_tokens()
  std::int64_t samples = 1;             ///< completions a prompt
  std::vector<std::string> stop;        ///< texts that end a completion
  std::int64_t max_new_tokens = 64;
  std::int64_t min_new_tokens = 0;
  double temperature = 1;
  std::int64_t top_k = 0;
  double top_p = 1;
  double repetition_penalty = 1;
  std::int64_t seed = 0;
  bool json = false;
  bool candidates = false;            ///< a line a prompt, with all its completions
  std::vector<std::string> guides;    ///< MODEL:WEIGHT, whose log-probs are added
  std::string value;                  ///< value model of a search; empty: none
  std::optional<std::int64_t> beams;  ///< of the search; default 5
  std::int64_t choose_steps = 0;      ///< steps to choose from by their Q; 0: whole completions
  std::string q_model, q_ref;         ///< of Q
  std::optional<std::string>
      step_end;  ///< default: an empty line in a search, the line's in a choice
  std::optional<std::int64_t> step_tokens;  ///< of a choice; default 64
  std::int64_t draft_tokens = 0;            ///< looked up in the sequence; 0: none
};
void run_generate(const GenerateArguments& arguments, std::ostream& out, std::ostream& err);

struct PairsArguments {
  std::string select;      ///< selection, JSON or @FILE
  std::string candidates;  ///< path of a JSONL file
  std::string trees;       ///< in place of it, of save_trees
  std::string output;      ///< empty: `out`
  std::int64_t seed = 0;
  double temperature = 1;  ///< of comparisons that follow from rewards
  double missing_eos_penalty = 0, length_penalty = 0;
  std::string unfinished = "as_judged";
};
/// Makes rows of completions with their feedback, or of the steps of trees; counts go to `err`.
void run_pairs(const PairsArguments& arguments, std::ostream& out, std::ostream& err);

struct SearchArguments : ModelArguments {
  std::string data;    ///< prompts
  std::string reward;  ///< program and arguments, a JSON list
  std::string tree = "{}";
  std::string output;            ///< file of trees, continued if it is there
  std::int64_t iterations = 0;   ///< of this call; 0: all that are left
  std::int64_t save_every = 16;  ///< iterations
  std::vector<std::string> end_tokens, stop;
  std::int64_t max_new_tokens = 256;
  double temperature = 1;
  std::int64_t top_k = 0;
  double top_p = 1;
  std::int64_t seed = 0;
  std::int64_t workers = 1;  ///< processes of the program
};
/// Searches for steps and writes trees; how far it is goes to `err`.
void run_search(const SearchArguments& arguments, std::ostream& err);

struct EvalArguments {
  std::vector<std::string> models;  ///< model folders or files, or adapters of the reference
  std::vector<std::string> guides;  ///< MODEL:WEIGHT, added to each of the models
  std::string reference, data;
  std::string dtype = "keep";
  std::string device = "cpu";
  std::string tokenizer;  ///< empty: the reference's own, else that of the models
  std::string chat_format = "auto";
  RowArguments rows;
  std::vector<std::string> end_tokens;  ///< ids, or texts of one token; none: see end_tokens()
  std::optional<double> beta;           ///< none: the loss's, else 0.1
  std::string loss;                     ///< to be evaluated, JSON or @FILE; empty: none
  std::int64_t batch = 8;               ///< pairs at a time
  // Of reward models none may be given.
  std::optional<std::int64_t> samples;         ///< fresh completions a prompt; 0: none; default 4
  std::optional<std::int64_t> prompts;         ///< to sample for; 0: all; default 64
  std::optional<std::int64_t> max_new_tokens;  ///< default 64
  std::int64_t seed = 0;
  std::string judge;   ///< shell command of a program that compares two completions; empty: none
  std::string reward;  ///< `controlled_task`, or shell command of a program; empty: none
  double judge_timeout = 60;  ///< seconds an answer
  std::string out;            ///< folder for evaluation.json and reliability.svg; empty: none
  bool json = false;
};
void run_eval(const EvalArguments& arguments, std::ostream& out, std::ostream& err);

struct ExportArguments : ModelArguments {
  std::string out;                ///< folder; empty: a GGUF file is written
  std::string gguf;               ///< file; empty: a folder is written
  std::string gguf_type = "F16";  ///< of matrices in a GGUF file
  bool adapter_only = false;      ///< the GGUF file holds the adapter alone
};
/// Writes a Hugging Face folder or a GGUF file, the adapter merged into the weights.
void run_export(const ExportArguments& arguments, std::ostream& err);

struct DoctorArguments : ModelArguments {
  std::vector<std::string> paths;     ///< models, adapters, tokenizers and rows
  std::vector<std::string> adapters;  ///< in place of `adapter`
  std::vector<std::string> data;
  std::string out = ".";  ///< folder whose speed is measured
  bool json = false;
};
/// Throws the first problem after the report.
void run_doctor(const DoctorArguments& arguments, std::ostream& out);

struct PlanArguments {
  std::string model;  ///< folder, GGUF file, name of a published model, or JSON of model.decoder
  std::string data;
  std::string config;  ///< path of a JSON file; empty: the options' defaults
  std::vector<std::string> sets;
  std::string tokenizer;
  std::vector<std::int64_t> lengths;  ///< of prompt, chosen and rejected, in place of `data`
  std::optional<std::int64_t> gpus;   ///< ranks with the defaults of GPUs
  std::map<std::string, std::string> assumptions;  ///< by name, as given
  std::int64_t steps = 20;                         ///< first steps of the run that are planned
  bool calibrate = false;
  bool json = false;
};
/// Prints what a run will hold and take, without reading weights.
void run_plan(const PlanArguments& arguments, std::ostream& out, std::ostream& err);

struct TokenizeArguments {
  std::string tokenizer = "byte";
  std::string data;  ///< lines of JSON: a text, or a list of bytes
};
void run_tokenize(const TokenizeArguments& arguments, std::ostream& out);

struct RenderArguments {
  std::string model;          ///< folder or GGUF file with a chat template; empty: template_file
  std::string template_file;  ///< a template alone; empty: the model's
  std::string template_name;  ///< of a model that has several; empty: its default
  std::string messages;       ///< lines of {"messages": […], "tools": […], further variables}
  bool add_generation_prompt = false;
  std::optional<std::string> bos, eos;  ///< in place of the model's
};
/// Prints the text of each conversation as a JSON string.
void run_render(const RenderArguments& arguments, std::ostream& out);

struct LabArguments {
  std::string name;  ///< an experiment, or all; empty: the list of them
  bool quick = false;
  std::string out = "lab";  ///< folder
  int seeds = 0;            ///< 0: as many as is usual for an experiment
  int first_seed = 0;
};
/// Prints a line a verdict; writes CSV and SVG files.
void run_lab(const LabArguments& arguments, std::ostream& out, std::ostream& err);

/// The program: chooses the command, and returns its exit code.
int run_command_line(int argc, char** argv);

}  // namespace prefopt::cli
