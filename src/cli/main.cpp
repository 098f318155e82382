// SPDX-License-Identifier: Apache-2.0
#include <c10/util/Exception.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <malloc.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): sigaction is not in <csignal>
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <iostream>
#include <span>
#include <sstream>
#include <streambuf>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/tables.h"
#include "core/file.h"
#include "core/memory.h"
#include "core/simd_limit.h"
#include "core/text.h"
#include "prefopt/dist/ranks.h"
#include "prefopt/error.h"
#include "prefopt/train/trainer.h"
#include "prefopt/version.h"
#include "run/plan/assumptions.h"
#include "run/plan/known_models.h"

namespace prefopt::cli {
namespace {

enum ExitCode : int {
  kOk = 0,
  kFailure = 1,
  kUsage = 2,
  kData = 3,
  kModelFile = 4,
  kNonFinite = 5,
  kOutOfMemory = 6,
  kInterrupted = 130,
};

int fail(ExitCode code, std::string_view what) {
  std::cerr << "prefopt: " << detail::printable(what) << '\n';
  return code;
}

int fail_out_of_memory(std::string_view what) {
  return fail(kOutOfMemory,
              fmt::format("out of memory: {}; smaller batch.micro_rows, data.max_length or "
                          "model help",
                          what));
}

std::string_view first_line(std::string_view text) { return text.substr(0, text.find('\n')); }

/// Runs `command` and says in one sentence what went wrong. `is_summary`: what it prints is only
/// about files that it wrote, and nobody has to read it.
int exit_code_of(const std::function<void()>& command, bool is_summary) {
  try {
    command();
    // A full disk or a closed pipe shows at the latest here.
    if (std::cout.flush()) return kOk;
    return fail(is_summary ? kOk : kFailure,
                is_summary ? "stdout: expected to write the summary, got an error; the run is whole"
                           : "stdout: expected to write the result, got an error");
  } catch (const ConfigError& error) {
    return fail(kUsage, error.what());
  } catch (const LostRankError& error) {
    return fail(kFailure, error.what());
  } catch (const DeviceError& error) {
    return fail(kUsage, error.what());
  } catch (const DataError& error) {
    return fail(kData, error.what());
  } catch (const ShapeError& error) {
    return fail(kData, error.what());
  } catch (const DtypeError& error) {
    return fail(kData, error.what());
  } catch (const CheckpointError& error) {
    return fail(kModelFile, error.what());
  } catch (const NonFiniteError& error) {
    return fail(kNonFinite, error.what());
  } catch (const OutOfMemoryError& error) {
    return fail(kOutOfMemory, error.what());
  } catch (const Interrupted& interrupted) {
    return fail(kInterrupted, interrupted.what());
  } catch (const std::exception& error) {
    const std::string memory = detail::allocation_failure(error);
    if (!memory.empty()) return fail_out_of_memory(memory);
    const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
    return fail(kFailure, first_line(of_torch ? of_torch->what_without_backtrace() : error.what()));
  }
}

/// Values as they are given, one or several behind the name: CLI11 splits a list in brackets at its
/// commas where a name takes any number of them.
CLI::Option* with_brackets(CLI::Option* option) {
  constexpr int kMostValues = 10'000;
  return option->expected(1, kMostValues)->allow_extra_args(false);
}

const std::vector<std::string> kDtypes = {"float32", "float64", "bfloat16",  "float16",
                                          "keep",    "q8_0",    "quantized", "q4_k"};

void add_model(CLI::App& command, ModelArguments& arguments) {
  command
      .add_option("--model", arguments.model,
                  "Hugging Face folder or GGUF file of a Llama-family model")
      ->type_name("PATH")
      ->required();
  command.add_option("--adapter", arguments.adapter, "PEFT folder of a low-rank adapter")
      ->type_name("DIR");
  command
      .add_option("--dtype", arguments.dtype,
                  "float32, float64, bfloat16, float16, keep, quantized, q8_0 or q4_k")
      ->check(CLI::IsMember(kDtypes))
      ->capture_default_str();
  command.add_option("--device", arguments.device, "cpu, cuda, cuda:1, …, or auto")
      ->capture_default_str();
  command.add_option("--tokenizer", arguments.tokenizer,
                     "byte, a tokenizer.json, a folder that holds one or a GGUF file; default: the "
                     "adapter's or the model's own");
  command
      .add_option(
          "--chat-format", arguments.chat_format,
          "text that messages become, or auto: that of the run that made the model, else of "
          "the tokenizer's template, else dialogue")
      ->capture_default_str();
}

void add_guides(CLI::App& command, std::vector<std::string>& guides) {
  command
      .add_option("--guide", guides,
                  "model whose log-probs are added, times the weight; repeatable")
      ->type_name("PATH:WEIGHT")
      ->allow_extra_args(false);
}

void add_columns(CLI::App& command, ColumnArguments& arguments) {
  command
      .add_option("--columns", arguments.columns,
                  "layout of the rows: orca, alpaca, sharegpt, openai, pku, shp, "
                  "ultrafeedback, completions, or {\"field\": \"column\"}")
      ->type_name("NAME|JSON|@FILE");
  command
      .add_option("--unused", arguments.unused,
                  "prompt columns that nothing reads: error (the default) or note")
      ->type_name("error|note");
}

void add_rows(CLI::App& command, RowArguments& arguments) {
  add_columns(command, arguments);
  command
      .add_option("--data-options", arguments.options,
                  "data options of a run, such as {\"loss_on\": \"last\"}; default: those of the "
                  "run that made the model, without any that cut, drop or refuse rows")
      ->type_name("JSON|@FILE");
}

void add_end_tokens(CLI::App& command, std::vector<std::string>& names) {
  command
      .add_option("--end-tokens,--eos-id", names,
                  "ids or texts of the tokens that end a completion, -1: none; default: those of "
                  "the model, the tokenizer and the chat format")
      ->type_name("TOKEN")
      ->allow_extra_args(false);
}

CLI::App* add_train(CLI::App& app, TrainArguments& arguments) {
  auto* command = app.add_subcommand("train", "Train one run into a run folder");
  command->add_option("--config", arguments.config, "options of the run, JSON")
      ->type_name("FILE")
      ->required();
  command->add_option("--set", arguments.sets, "override one option, as in loss.beta=0.2")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command
      ->add_option_function<std::string>(
          "--device",
          [&arguments](const std::string& name) {
            arguments.sets.push_back("model.device=" + name);
          },
          "cpu, cuda, cuda:1, …, or auto: --set model.device=")
      ->type_name("TEXT");
  command
      ->add_option("--resume", arguments.resume,
                   "resume from a run folder or a checkpoint; auto: from output_dir, if it holds "
                   "a run")
      ->type_name("auto|PATH");
  command->add_flag("--print-config", arguments.print_config, "print all options and stop");
  command
      ->add_flag("--dry-run", arguments.dry_run,
                 "take one step, print memory and speed, keep nothing")
      ->excludes("--resume");
  command->add_flag("--quiet", arguments.quiet, "no progress; remarks about the data stay");
  return command;
}

CLI::App* add_launch(CLI::App& app, LaunchArguments& arguments) {
  auto* command = app.add_subcommand(
      "launch", "Train one run in several processes of this machine: launch --ranks 2 -- train …");
  command->add_option("--ranks", arguments.ranks, "processes, which train together")
      ->required()
      ->check(CLI::Range(1, 4096));
  command
      ->add_option("--max-restarts", arguments.max_restarts,
                   "times that all start again, with --resume auto, after a signal has ended one")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("command", arguments.command, "after --: train and its options")
      ->type_name("COMMAND")
      ->required();
  return command;
}

CLI::App* add_report(CLI::App& app, ReportArguments& arguments) {
  auto* command = app.add_subcommand("report", "Regenerate report.html of a run folder");
  command->add_option("run", arguments.run, "run folder")->type_name("RUN_DIR")->required();
  command->add_flag("--print", arguments.print, "print the page and write nothing");
  return command;
}

CLI::App* add_data_check(CLI::App& app, DataCheckArguments& arguments) {
  auto* data = app.add_subcommand("data", "Inspect files of preference rows");
  data->require_subcommand(1);
  auto* command =
      data->add_subcommand("check", "Check rows before a run: counts, lengths, defects, leaks");
  with_brackets(command->add_option("--data", arguments.data, "rows to train on"))
      ->type_name("FILE")
      ->required();
  with_brackets(command->add_option("--eval", arguments.eval, "held-out rows"))->type_name("FILE");
  command->add_option("--model", arguments.model, "model whose tokenizer is used")
      ->type_name("PATH");
  command->add_option(
      "--tokenizer", arguments.tokenizer,
      "byte, a tokenizer.json, a folder that holds one or a GGUF file; default: the "
      "model's own, byte without a model");
  command->add_option(
      "--chat-format", arguments.chat_format,
      "text that messages become, or auto: that of the run that made the model, else of "
      "the tokenizer's template, else dialogue");
  command->add_option("--max-prompt-length", arguments.max_prompt_length, "tokens; 0: no limit");
  command->add_option("--max-completion-length", arguments.max_completion_length,
                      "tokens; 0: no limit");
  command->add_option("--max-length", arguments.max_length, "tokens of a row; 0: no limit");
  command
      ->add_option(
          "--options,--data-options", arguments.options,
          "data options of a run, such as {\"duplicate\": \"drop\"}; default: those of the "
          "run that made the model")
      ->type_name("JSON|@FILE");
  command->add_option("--loss", arguments.loss, "loss that the rows have to fit")
      ->type_name("JSON|@FILE");
  command->add_flag("--json", arguments.json, "print JSON");
  add_columns(*command, arguments.columns);
  return command;
}

CLI::App* add_score(CLI::App& app, ScoreArguments& arguments) {
  auto* command = app.add_subcommand(
      "score",
      "Print log-probs of chosen and rejected, or rewards of a reward model, one "
      "line per row");
  add_model(*command, arguments);
  add_rows(*command, arguments.rows);
  auto* rows = command->add_option_group("rows")->require_option(1);
  rows->add_option("--data", arguments.data, "preference rows")->type_name("FILE");
  rows->add_option("--candidates", arguments.candidates,
                   "lines of {prompt, completions}, to which --rewards adds rewards, for `pairs`")
      ->type_name("FILE");
  command->add_flag("--per-token", arguments.per_token,
                    "also the log-prob of each token, without the weights that sums may have");
  command->add_option("--batch", arguments.batch, "pairs at a time")->capture_default_str();
  command
      ->add_option("--rewards", arguments.rewards,
                   "in place of log-probs: beta log(pi/pi_ref) of steps or of tokens")
      ->type_name("steps|tokens");
  command->add_option("--ref", arguments.reference, "reference of --rewards")->type_name("PATH");
  command->add_option("--beta", arguments.beta, "of --rewards; default: 0.05");
  command
      ->add_option("--step-end", arguments.step_end,
                   "text that ends a step, none: each token is one; default: an empty line")
      ->type_name("TEXT");
  command
      ->add_option("--aggregate", arguments.aggregate,
                   "reward of a candidate: min, mean, last or sum of its steps'; default: min")
      ->type_name("NAME");
  return command;
}

CLI::App* add_loss(CLI::App& app, LossArguments& arguments) {
  auto* command = app.add_subcommand("loss", "Evaluate a loss and its gradient on given log-probs");
  command->add_option("--loss", arguments.loss, "loss config")->type_name("JSON|@FILE")->required();
  auto* rows = command->add_option_group("rows")->require_option(1);
  rows->add_option("--logps", arguments.logps, "rows of log-probs")->type_name("FILE");
  rows->add_option("--rollouts", arguments.rollouts,
                   "completions of a step, for an objective on tokens")
      ->type_name("FILE");
  return command;
}

CLI::App* add_grad(CLI::App& app, GradArguments& arguments) {
  auto* command =
      app.add_subcommand("grad", "Evaluate a loss and its gradient through a model, on one batch");
  add_model(*command, arguments);
  add_rows(*command, arguments.rows);
  command->add_option("--ref", arguments.reference, "reference, for losses that need one")
      ->type_name("DIR");
  command->add_option("--data", arguments.data, "preference rows")->type_name("FILE")->required();
  command->add_option("--loss", arguments.loss, "loss config")->type_name("JSON|@FILE")->required();
  command->add_option("--micro", arguments.micro, "pairs at a time, 0: all; same result")
      ->capture_default_str();
  command->add_option("--seed", arguments.seed, "of fresh samples")->capture_default_str();
  return command;
}

CLI::App* add_losses(CLI::App& app, LossesArguments& arguments) {
  auto* command = app.add_subcommand("losses", "List losses with options and sources");
  command->add_option("name", arguments.name,
                      "one loss, by name or alias, or objectives: those on tokens");
  command->add_flag("--json", arguments.json, "print JSON");
  return command;
}

CLI::App* add_generate(CLI::App& app, GenerateArguments& arguments) {
  auto* command = app.add_subcommand("generate", "Sample completions");
  add_model(*command, arguments);
  add_rows(*command, arguments.rows);
  command->add_option("--prompt", arguments.prompts, "text to continue; repeatable")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  command
      ->add_option("--message", arguments.messages, "user's message in the chat format; repeatable")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  command->add_option("--system", arguments.system, "system message before each --message")
      ->type_name("TEXT");
  command->add_option("--data", arguments.data, "rows with a prompt")->type_name("FILE");
  command->add_option("--samples", arguments.samples, "completions per prompt")
      ->capture_default_str();
  command->add_option("--max-new-tokens", arguments.max_new_tokens)->capture_default_str();
  command->add_option("--min-new-tokens", arguments.min_new_tokens, "no end token before as many")
      ->capture_default_str();
  add_end_tokens(*command, arguments.end_tokens);
  command->add_option("--stop", arguments.stop, "text that ends a completion; repeatable")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  command->add_option("--temperature", arguments.temperature, "0: greedy")->capture_default_str();
  command->add_option("--top-k", arguments.top_k, "0: off")->capture_default_str();
  command->add_option("--top-p", arguments.top_p)->capture_default_str();
  command
      ->add_option("--repetition-penalty", arguments.repetition_penalty,
                   "above 1: fewer tokens that prompt or completion hold; 1: off")
      ->capture_default_str();
  command
      ->add_option("--draft-tokens", arguments.draft_tokens,
                   "greedy: try as many tokens at once that followed the same text before; 0: off")
      ->capture_default_str();
  command->add_option("--seed", arguments.seed)->capture_default_str();
  command->add_flag("--json", arguments.json, "lines of {prompt, completion, ids}");
  command->add_flag("--candidates", arguments.candidates,
                    "a line per prompt, {prompt, completions, token_logps, ended}, for `pairs`");
  add_guides(*command, arguments.guides);
  command
      ->add_option("--value", arguments.value,
                   "value model: search steps by it in place of sampling whole completions")
      ->type_name("DIR");
  command->add_option("--beams", arguments.beams, "of the search, kept and drawn; default: 5");
  command
      ->add_option(
          "--step-end", arguments.step_end,
          "text that ends a step; default: an empty line in a search, a line's end in a choice")
      ->type_name("TEXT");
  command
      ->add_option("--choose-steps", arguments.choose_steps,
                   "steps to choose from by their Q, with --q-model; 0: off")
      ->capture_default_str();
  command->add_option("--q-model", arguments.q_model, "model trained by DPO on pairs of steps")
      ->type_name("DIR");
  command->add_option("--q-ref", arguments.q_ref, "its reference; default: --model")
      ->type_name("DIR");
  command->add_option("--step-tokens", arguments.step_tokens,
                      "tokens of a step at most; default: 64");
  return command;
}

CLI::App* add_search(CLI::App& app, SearchArguments& arguments) {
  auto* command = app.add_subcommand("search", "Search for good steps of completions, as a tree");
  add_model(*command, arguments);
  add_rows(*command, arguments.rows);
  command->add_option("--data", arguments.data, "prompts")->type_name("FILE")->required();
  command
      ->add_option("--reward", arguments.reward,
                   "program that rates completions, [\"python3\", \"reward.py\"]")
      ->type_name("JSON|@FILE")
      ->required();
  command->add_option("--tree", arguments.tree, "options of the search")
      ->type_name("JSON|@FILE")
      ->capture_default_str();
  command->add_option("--output", arguments.output, "file of trees, continued if it is there")
      ->type_name("FILE")
      ->required();
  command->add_option("--iterations", arguments.iterations, "of this call; 0: all that are left")
      ->capture_default_str();
  command->add_option("--save-every", arguments.save_every, "iterations")->capture_default_str();
  command->add_option("--max-new-tokens", arguments.max_new_tokens)->capture_default_str();
  add_end_tokens(*command, arguments.end_tokens);
  command->add_option("--stop", arguments.stop, "text that ends a completion; repeatable")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  command->add_option("--temperature", arguments.temperature)->capture_default_str();
  command->add_option("--top-k", arguments.top_k, "0: off")->capture_default_str();
  command->add_option("--top-p", arguments.top_p)->capture_default_str();
  command->add_option("--seed", arguments.seed)->capture_default_str();
  command->add_option("--workers", arguments.workers, "processes of the program")
      ->capture_default_str();
  return command;
}

CLI::App* add_pairs(CLI::App& app, PairsArguments& arguments) {
  auto* command = app.add_subcommand("pairs", "Make rows of completions with their feedback");
  command->add_option("--select", arguments.select, "selection, as {\"type\": \"best_worst\"}")
      ->type_name("JSON|@FILE")
      ->required();
  auto* input = command->add_option_group("input")->require_option(1);
  input
      ->add_option("--candidates", arguments.candidates,
                   "lines of {prompt, completions, rewards} or {prompt, completions, beats}")
      ->type_name("FILE");
  input->add_option("--trees", arguments.trees, "trees of `search` or of a run")->type_name("FILE");
  command->add_option("--output", arguments.output, "file to write; default: print")
      ->type_name("FILE");
  command->add_option("--seed", arguments.seed, "of random choices")->capture_default_str();
  command
      ->add_option("--temperature", arguments.temperature,
                   "T of P(i beats j) = sigmoid((reward_i - reward_j) / T); 0: the larger wins")
      ->capture_default_str();
  command
      ->add_option("--missing-eos-penalty", arguments.missing_eos_penalty,
                   "subtracted from the reward of a completion that has not `ended`")
      ->capture_default_str();
  command
      ->add_option("--length-penalty", arguments.length_penalty,
                   "subtracted from the reward for each of the `token_logps`")
      ->capture_default_str();
  command
      ->add_option("--unfinished", arguments.unfinished,
                   "completions that have not `ended`, against others: as_judged or loses")
      ->capture_default_str();
  return command;
}

CLI::App* add_eval(CLI::App& app, EvalArguments& arguments) {
  auto* command =
      app.add_subcommand("eval", "Compare models with a reference, or reward models, on pairs");
  command
      ->add_option("--model", arguments.models,
                   "Hugging Face folders or GGUF files, or PEFT folders of adapters of the "
                   "reference; or reward models")
      ->type_name("PATH")
      ->required();
  command->add_option("--ref", arguments.reference, "reference; none for reward models")
      ->type_name("PATH");
  add_guides(*command, arguments.guides);
  command->add_option("--data", arguments.data, "preference rows")->type_name("FILE")->required();
  command
      ->add_option("--dtype", arguments.dtype,
                   "float32, float64, bfloat16, float16, keep, quantized, q8_0 or q4_k")
      ->check(CLI::IsMember(kDtypes))
      ->capture_default_str();
  command->add_option("--device", arguments.device, "cpu, cuda, cuda:1, …, or auto")
      ->capture_default_str();
  command->add_option(
      "--tokenizer", arguments.tokenizer,
      "byte, a tokenizer.json, a folder that holds one or a GGUF file; default: the "
      "reference's own");
  command
      ->add_option(
          "--chat-format", arguments.chat_format,
          "text that messages become, or auto: that of the run that made the model, else of "
          "the tokenizer's template, else dialogue")
      ->capture_default_str();
  command->add_option("--beta", arguments.beta,
                      "of rewards and probabilities; default: the "
                      "loss's, else 0.1");
  command->add_option("--loss", arguments.loss, "loss to evaluate too")->type_name("JSON|@FILE");
  command->add_option("--batch", arguments.batch, "pairs at a time")->capture_default_str();
  command->add_option("--samples", arguments.samples,
                      "fresh completions per prompt; 0: none; default: 4");
  command->add_option("--prompts", arguments.prompts, "prompts to sample for; 0: all; default: 64");
  command->add_option("--max-new-tokens", arguments.max_new_tokens, "default: 64");
  add_end_tokens(*command, arguments.end_tokens);
  command->add_option("--seed", arguments.seed)->capture_default_str();
  command
      ->add_option("--judge", arguments.judge,
                   "program that picks the better of two completions, by lines of JSON")
      ->type_name("COMMAND");
  command
      ->add_option("--reward", arguments.reward,
                   "controlled_task, or a program that scores a completion")
      ->type_name("NAME|COMMAND");
  command->add_option("--judge-timeout", arguments.judge_timeout, "seconds an answer may take")
      ->capture_default_str();
  command->add_option("--out", arguments.out, "folder for evaluation.json and reliability.svg")
      ->type_name("DIR");
  command->add_flag("--json", arguments.json, "print JSON");
  add_rows(*command, arguments.rows);
  return command;
}

CLI::App* add_export(CLI::App& app, ExportArguments& arguments) {
  auto* command = app.add_subcommand(
      "export", "Write a Hugging Face folder or a GGUF file of a model with its adapter merged");
  add_model(*command, arguments);
  command->add_option("--out", arguments.out, "folder to write")->type_name("DIR");
  command->add_option("--gguf", arguments.gguf, "file to write, for llama.cpp and programs of it")
      ->type_name("FILE");
  command
      ->add_option("--gguf-type", arguments.gguf_type,
                   "of its matrices: F32, F16, BF16, Q8_0, Q4_0 or Q4_K")
      ->type_name("TYPE")
      ->capture_default_str();
  command->add_flag("--adapter-only", arguments.adapter_only,
                    "write the adapter alone, for llama.cpp's --lora");
  return command;
}

CLI::App* add_doctor(CLI::App& app, DoctorArguments& arguments) {
  auto* command = app.add_subcommand("doctor", "Check machine, model and data before a run");
  command
      ->add_option("PATH", arguments.paths,
                   "models, adapters, tokenizers and rows, told apart by what they hold")
      ->type_name("");
  command->add_option("--model", arguments.model, "model to open")->type_name("PATH");
  with_brackets(command->add_option("--adapter", arguments.adapters,
                                    "PEFT folders of low-rank adapters of the model"))
      ->type_name("DIR");
  command->add_option("--tokenizer", arguments.tokenizer, "default: the model's own");
  command->add_option("--chat-format", arguments.chat_format, "text that messages become")
      ->capture_default_str();
  with_brackets(command->add_option("--data", arguments.data, "rows to read"))->type_name("FILE");
  command->add_option("--out", arguments.out, "folder for runs; its speed is measured")
      ->type_name("DIR")
      ->capture_default_str();
  command->add_flag("--json", arguments.json, "print JSON");
  return command;
}

CLI::App* add_plan(CLI::App& app, PlanArguments& arguments) {
  auto* command = app.add_subcommand(
      "plan", "Say what a run will hold and take: memory, operations, collectives, time");
  command
      ->add_option(
          "--model", arguments.model,
          fmt::format("Hugging Face folder, GGUF file, JSON of model.decoder, or one of {}",
                      joined(detail::known_models())))
      ->type_name("PATH|NAME|JSON");
  command->add_option("--data", arguments.data, "rows to train on")->type_name("FILE");
  command->add_option("--config", arguments.config, "options of the run, JSON")->type_name("FILE");
  command->add_option("--set", arguments.sets, "override one option, as in batch.rows=64")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->add_option("--tokenizer", arguments.tokenizer,
                      "byte, a tokenizer.json, a folder that holds one or a GGUF file; default: "
                      "the model's own");
  command
      ->add_option("--lengths", arguments.lengths,
                   "tokens of prompt, chosen and rejected, in place of --data")
      ->type_name("P,C,R")
      ->delimiter(',')
      ->expected(3);
  command
      ->add_option("--gpus", arguments.gpus,
                   "ranks, with the assumptions of H100 cards, eight a node")
      ->type_name("N");
  command
      ->add_option("--plan-steps", arguments.steps,
                   "first steps of the run that figures are means of")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1'000'000}))
      ->capture_default_str();
  command->add_flag("--calibrate", arguments.calibrate,
                    "measure the speed of this machine on the model's sizes, some seconds");
  command->add_flag("--json", arguments.json, "print JSON");
  for (const FieldDoc& field : describe_options<detail::PlanAssumptions>()) {
    const auto keep = [&arguments, name = field.name](const std::string& value) {
      arguments.assumptions[name] = value;
    };
    const std::string choices = field.type == "choice" ? "; one of " + field.range : "";
    command->add_option_function<std::string>(flag_of(field.name), keep, field.doc + choices)
        ->type_name(field.type)
        ->default_str(field.default_value);
  }
  return command;
}

CLI::App* add_tokenize(CLI::App& app, TokenizeArguments& arguments) {
  auto* command =
      app.add_subcommand("tokenize", "Print token ids of texts, one line of JSON per text");
  command
      ->add_option("--tokenizer", arguments.tokenizer,
                   "byte, a tokenizer.json, a folder that holds one or a GGUF file")
      ->capture_default_str();
  command->add_option("--data", arguments.data, "lines of JSON: a text, or a list of its bytes")
      ->type_name("FILE")
      ->required();
  return command;
}

CLI::App* add_render(CLI::App& app, RenderArguments& arguments) {
  auto* command = app.add_subcommand(
      "render", "Print the text that a chat template makes of messages, one JSON string per line");
  command->add_option("--model", arguments.model, "folder or GGUF file with the template")
      ->type_name("PATH");
  command->add_option("--template", arguments.template_file, "the template alone")
      ->type_name("FILE");
  command->add_option("--template-name", arguments.template_name,
                      "one of the model's templates; default: its default");
  command
      ->add_option("--messages", arguments.messages,
                   "lines of {\"messages\": [...], \"tools\": [...]} and further variables")
      ->type_name("FILE")
      ->required();
  command->add_flag("--add-generation-prompt", arguments.add_generation_prompt,
                    "open the assistant's next turn");
  command->add_option("--bos", arguments.bos, "text of the begin token; default: the model's")
      ->type_name("TEXT");
  command->add_option("--eos", arguments.eos, "text of the end token; default: the model's")
      ->type_name("TEXT");
  return command;
}

CLI::App* add_lab(CLI::App& app, LabArguments& arguments) {
  auto* command = app.add_subcommand("lab", "Measure claims of the papers with exact policies");
  command->add_option("name", arguments.name, "an experiment, or all; without a name: list them");
  command->add_flag("--quick", arguments.quick, "fewer points and seeds: all in minutes");
  command->add_option("--out", arguments.out, "folder for CSV and SVG files")
      ->type_name("DIR")
      ->capture_default_str();
  command
      ->add_option("--seeds", arguments.seeds,
                   "instances per interval; 0: the default of the experiment")
      ->capture_default_str();
  command->add_option("--first-seed", arguments.first_seed, "number of the first instance")
      ->capture_default_str();
  return command;
}

/// Runs `print` with a stream whose text comes to stdout without control characters, also where it
/// throws. `for_programs`: JSON has no such characters but in texts, which it may not change,
/// unless a terminal is what reads it.
void print_report(bool for_programs, const std::function<void(std::ostream&)>& print) {
  if (for_programs && ::isatty(STDOUT_FILENO) == 0) return print(std::cout);
  struct Table {
    std::ostringstream text;
    ~Table() { std::cout << detail::printable(text.str(), /*keep_lines=*/true); }
  } table;
  print(table.text);
}

/// Passes lines on to a stream without control characters, each when it is whole or flushed.
class PrintableLines final : public std::streambuf {
 public:
  explicit PrintableLines(std::ostream& stream) : stream_(stream) {}
  ~PrintableLines() override { PrintableLines::sync(); }

 private:
  int_type overflow(int_type c) override {
    if (c == traits_type::eof()) return traits_type::not_eof(c);
    line_ += traits_type::to_char_type(c);
    if (c == '\n') sync();
    return c;
  }
  int sync() override {
    stream_ << detail::printable(std::exchange(line_, {}), /*keep_lines=*/true) << std::flush;
    return stream_ ? 0 : -1;
  }

  std::ostream& stream_;
  std::string line_;
};

/// Runs `print` with stdout, which comes to a terminal line by line without control characters:
/// what a model says may hold any.
void print_lines(const std::function<void(std::ostream&)>& print) {
  if (::isatty(STDOUT_FILENO) == 0) return print(std::cout);
  PrintableLines lines(std::cout);
  std::ostream out(&lines);
  print(out);
}

/// Where the drive has no links, `last` and `best` of a run's checkpoints are files.
void follow_links(const std::vector<std::string*>& paths) {
  for (std::string* path : paths) *path = detail::followed(*path);
}

/// `data check`.
std::string full_name(const CLI::App& command) {
  const CLI::App* parent = command.get_parent();
  const bool is_nested = parent != nullptr && parent->get_parent() != nullptr;
  return (is_nested ? full_name(*parent) + " " : "") + command.get_name();
}

/// A training step frees and takes the same large buffers again and again: the heap keeps them, as
/// the system's first touch of a fresh page costs more than a pass over it.
void keep_freed_memory() {
#ifdef __GLIBC__
  constexpr int kOneGib = 1 << 30;
  mallopt(M_MMAP_THRESHOLD, kOneGib);
  mallopt(M_TRIM_THRESHOLD, kOneGib);
#endif
}

/// Columns of a terminal on which a line can be rewritten; 0 where `descriptor` is something else.
std::size_t terminal_width(int descriptor) {
  const char* kind = std::getenv("TERM");
  winsize size{};
  if (kind == nullptr || std::string_view(kind) == "dumb") return 0;
  return ::ioctl(descriptor, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

/// Returns the words of a command line, with `--name=` as `--name` and an empty word, which alone
/// CLI11 takes for a value.
std::vector<const char*> with_empty_values(int argc, char** argv) {
  std::vector<const char*> words;
  bool is_ended = false;
  for (char* const word : std::span(argv, static_cast<std::size_t>(argc))) {
    const std::string_view text(word);
    words.push_back(word);
    is_ended |= text == "--";
    if (is_ended || !text.starts_with("--") || text.find('=') + 1 != text.size()) continue;
    word[text.size() - 1] = '\0';
    words.push_back("");
  }
  return words;
}

/// Runs a command, whose errors about its flags name them.
void run_named(const CLI::App& command, const std::function<void()>& run_command) {
  try {
    run_command();
  } catch (const ConfigError& error) {
    throw ConfigError(led_by_flag(error.what(), command.get_name(), [&](const std::string& flag) {
      const CLI::Option* option = command.get_option_no_throw(flag);
      return option != nullptr && option->count() > 0;
    }));
  }
}

int run(int argc, char** argv) {
  CLI::App app{"prefopt: preference optimization of language models"};
  app.set_version_flag("--version", "prefopt " PREFOPT_VERSION_STRING);
  app.require_subcommand(1);

  TrainArguments train;
  LaunchArguments launch;
  ReportArguments report;
  DataCheckArguments data_check;
  ScoreArguments score;
  LossArguments loss;
  GradArguments grad;
  LossesArguments losses;
  GenerateArguments generate;
  PairsArguments pairs;
  SearchArguments search;
  EvalArguments eval;
  ExportArguments exported;
  DoctorArguments doctor;
  PlanArguments plan;
  TokenizeArguments tokenize;
  RenderArguments rendered;
  LabArguments lab;
  train.terminal_width = terminal_width(STDERR_FILENO);
  int launched = 0;  // the exit code of what was launched
  PrintableLines lines(std::cerr);
  std::ostream remarks(&lines);

  const std::vector<std::pair<CLI::App*, std::function<void()>>> commands{
      {add_train(app, train),
       [&] {
         print_report(train.print_config,
                      [&](std::ostream& out) { run_train(train, out, std::cerr); });
       }},
      {add_launch(app, launch), [&] { launched = run_launch(launch, std::cerr); }},
      {add_report(app, report), [&] { run_report(report, std::cout); }},
      {add_data_check(app, data_check),
       [&] {
         print_report(data_check.json,
                      [&](std::ostream& out) { run_data_check(data_check, out, remarks); });
       }},
      {add_score(app, score), [&] { run_score(score, std::cout, remarks); }},
      {add_loss(app, loss),
       [&] {
         if (loss.rollouts.empty()) {
           run_loss(loss, std::cout);
         } else {
           run_rollout_loss(loss, std::cout);
         }
       }},
      {add_grad(app, grad), [&] { run_grad(grad, std::cout, remarks); }},
      {add_losses(app, losses), [&] { run_losses(losses, std::cout, std::cerr); }},
      {add_generate(app, generate),
       [&] { print_lines([&](std::ostream& out) { run_generate(generate, out, remarks); }); }},
      {add_search(app, search), [&] { run_search(search, remarks); }},
      {add_pairs(app, pairs),
       [&] { print_lines([&](std::ostream& out) { run_pairs(pairs, out, remarks); }); }},
      {add_eval(app, eval),
       [&] { print_report(eval.json, [&](std::ostream& out) { run_eval(eval, out, remarks); }); }},
      {add_export(app, exported), [&] { run_export(exported, remarks); }},
      {add_doctor(app, doctor),
       [&] { print_report(doctor.json, [&](std::ostream& out) { run_doctor(doctor, out); }); }},
      {add_plan(app, plan),
       [&] { print_report(plan.json, [&](std::ostream& out) { run_plan(plan, out, remarks); }); }},
      {add_tokenize(app, tokenize),
       [&] { print_lines([&](std::ostream& out) { run_tokenize(tokenize, out); }); }},
      {add_render(app, rendered),
       [&] { print_lines([&](std::ostream& out) { run_render(rendered, out); }); }},
      {add_lab(app, lab), [&] { run_lab(lab, std::cout, std::cerr); }},
  };
  const std::vector<const char*> words = with_empty_values(argc, argv);
  try {
    app.parse(static_cast<int>(words.size()), words.data());
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    std::string help = "prefopt --help";
    for (const auto& [command, run_command] : commands) {
      if (command->parsed()) help = "prefopt " + full_name(*command) + " --help";
    }
    return fail(kUsage, std::string(error.what()) + "; see " + help);
  }
  for (ModelArguments* model : std::initializer_list<ModelArguments*>{
           &score, &grad, &generate, &search, &exported, &doctor}) {
    follow_links({&model->model, &model->adapter, &model->tokenizer});
  }
  follow_links({&generate.q_model, &generate.q_ref, &grad.reference, &eval.reference,
                &eval.tokenizer, &data_check.model, &data_check.tokenizer, &tokenize.tokenizer});
  for (std::string& model : eval.models) follow_links({&model});
  const bool is_summary = app.got_subcommand("train") && !train.print_config && !train.dry_run;
  const int code = exit_code_of(
      [&] {
        if (const auto limit = detail::simd_limit_of_environment()) detail::hold_simd(*limit);
        for (const auto& [command, run_command] : commands) {
          if (command->parsed()) run_named(*command, run_command);
        }
      },
      is_summary);
  return code == kOk ? launched : code;
}

/// Where a standard stream is closed, the first file that is opened would take its place and get
/// what is printed. It gets a stream that nothing can be written to or read from.
void open_standard_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(stream, F_GETFD) >= 0) continue;
    ::open("/dev/null", stream == STDIN_FILENO ? O_WRONLY : O_RDONLY);  // takes the lowest number
  }
}

extern "C" void say_that_a_file_shrank(int) {
  constexpr std::string_view kText =
      "prefopt: expected a file that is read to stay as it is, got one that was cut short "
      "(SIGBUS)\n";
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, kText.data(), kText.size());
  ::_exit(kModelFile);
}

/// A reader of the output that ends, or a file that may not grow further, is an error of a write
/// and not the end of a run that has something to save. Processes that are started report their
/// end, whatever the caller of this one ignores.
void set_signals() {
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);
  ::signal(SIGCHLD, SIG_DFL);
  struct sigaction action {};
  action.sa_handler = say_that_a_file_shrank;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, nullptr);
}

}  // namespace

int run_command_line(int argc, char** argv) {
  open_standard_streams();
  set_signals();
  keep_freed_memory();
  return run(argc, argv);
}

}  // namespace prefopt::cli
