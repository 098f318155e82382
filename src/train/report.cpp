// SPDX-License-Identifier: Apache-2.0
#include "prefopt/train/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "core/file.h"
#include "core/html.h"
#include "core/json.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "train/report_charts.h"
#include "train/report_style.h"
#include "train/run_record.h"
#include "train/verdict.h"

namespace prefopt {

using detail::Change;
using detail::escape_html;
using detail::Json;
using detail::number_at;
using detail::object_at;
using detail::RunRecord;
using detail::text_at;
using detail::Verdict;

namespace {

std::string number(double value) {
  if (std::isnan(value)) return "not finite";
  if (value == std::floor(value) && std::abs(value) < 1e15) return fmt::format("{:.0f}", value);
  return fmt::format("{:.4g}", value);
}

std::string percent(double rate) { return fmt::format("{:.1f} %", 100 * rate); }

std::string duration(double seconds) {
  const auto whole = std::llround(std::max(0.0, seconds));
  if (whole < 60) return fmt::format("{:.3g} s", seconds);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

std::string number_text(const Json& object, std::string_view key) {
  const auto value = number_at(object, key);
  return value ? number(*value) : "";
}

/// `text` as one word of a POSIX shell.
std::string shell_word(const std::string& text) {
  const auto is_plain = [](unsigned char c) {
    return std::isalnum(c) != 0 ||
           std::string_view("_-./=:,+@%").find(static_cast<char>(c)) != std::string_view::npos;
  };
  if (!text.empty() && std::all_of(text.begin(), text.end(), is_plain)) return text;
  std::string word = "'";
  for (const char c : text) {
    if (c == '\'') {
      word += "'\\''";
    } else {
      word += c;
    }
  }
  return word + "'";
}

std::string code(std::string_view text) {
  return text.empty() ? "" : "<code>" + escape_html(text) + "</code>";
}

std::string heading(std::string_view text) { return fmt::format("<h2>{}</h2>\n", text); }

/// Rows of a heading and HTML; rows without a value are left out.
class FactTable {
 public:
  void add(std::string_view name, const std::string& html) {
    if (html.empty()) return;
    rows_ += fmt::format("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", name, html);
  }
  std::string html() const {
    return rows_.empty() ? "" : "<table class=\"facts\">\n" + rows_ + "</table>\n";
  }

 private:
  std::string rows_;
};

std::string run_name(const RunRecord& record) {
  const auto path = std::filesystem::path(record.folder).lexically_normal();
  const auto name = path.has_filename() ? path.filename() : path.parent_path().filename();
  return name.empty() ? record.folder : name.string();
}

// ---- What was trained ----

std::string loss_type(const RunRecord& record) {
  return text_at(object_at(record.config, "loss"), "type");
}

/// Null for a loss that this program does not know, as one of another program.
const LossEntry* known_loss(const std::string& type) {
  try {
    return &find_loss(type);
  } catch (const ConfigError&) {
    return nullptr;
  }
}

std::string source_link(const std::string& source) {
  constexpr std::string_view kArxiv = "arXiv:";
  const auto at = source.find(kArxiv);
  if (at == std::string::npos) return escape_html(source);
  const auto begin = at + kArxiv.size();
  const auto end = std::min(source.find_first_not_of("0123456789.", begin), source.size());
  const std::string id = source.substr(begin, end - begin);
  return fmt::format("{}<a href=\"https://arxiv.org/abs/{}\">arXiv:{}</a>{}",
                     escape_html(source.substr(0, at)), id, id, escape_html(source.substr(end)));
}

/// Options whose value is not the default, and those that the formula names.
std::string loss_options(const Json& config, const LossEntry* entry) {
  std::string list;
  for (const auto& [key, value] : config.items()) {
    if (key == "type") continue;
    const std::string text = text_at(config, key);
    const FieldDoc* doc = nullptr;
    if (entry != nullptr) {
      const auto found = std::find_if(entry->options.begin(), entry->options.end(),
                                      [&](const FieldDoc& option) { return option.name == key; });
      if (found != entry->options.end()) doc = &*found;
    }
    const bool is_default =
        doc != nullptr &&
        (doc->default_value == text || (value.is_number() && doc->default_value == number(value)));
    const bool in_formula = entry != nullptr && entry->info.formula.find(key) != std::string::npos;
    if (is_default && !in_formula) continue;
    list += fmt::format("<br>{} = {}{}", code(key), code(text),
                        doc == nullptr ? "" : " – " + escape_html(doc->doc));
  }
  return list;
}

std::string loss_html(const RunRecord& record) {
  const std::string type = loss_type(record);
  if (type.empty()) return {};
  const LossEntry* entry = known_loss(type);
  std::string html = code(type);
  if (entry != nullptr) {
    html += ": " + code(entry->info.formula);
    if (!entry->info.source.empty()) html += " (" + source_link(entry->info.source) + ")";
  }
  html += loss_options(object_at(record.config, "loss"), entry);
  if (entry != nullptr) {
    html +=
        "<br><span class=\"quiet\">delta: by how much the policy's log-ratio to the reference is "
        "higher for the chosen completion than for the rejected one. Other options are at their "
        "defaults.</span>";
  }
  return html;
}

std::string model_html(const RunRecord& record) {
  const Json& model = object_at(record.config, "model");
  const Json& shape = object_at(model, "decoder");
  if (model.empty()) return {};
  const std::string path = text_at(model, "path");
  std::string html = path.empty() ? "fresh weights" : code(path);
  const auto size = number_at(record.facts, "parameters");
  const auto trained = number_at(record.facts, "trained_parameters");
  if (size) html += fmt::format(", {:.0f} parameters", *size);
  if (size && trained && *trained < *size)
    html += fmt::format(", {:.0f} of them trained", *trained);
  html += fmt::format(" in {}", escape_html(text_at(model, "dtype")));
  if (!shape.empty()) {
    html += fmt::format("<br>{} layers, hidden size {}, vocabulary {}",
                        escape_html(text_at(shape, "num_hidden_layers")),
                        escape_html(text_at(shape, "hidden_size")),
                        escape_html(text_at(shape, "vocab_size")));
  }
  if (text_at(model, "use_lora") == "true" || !text_at(model, "adapter").empty()) {
    const Json& lora = object_at(model, "lora");
    html +=
        text_at(model, "adapter").empty()
            ? fmt::format("<br>by a low-rank adapter, r = {}, alpha = {}",
                          escape_html(text_at(lora, "r")), escape_html(text_at(lora, "lora_alpha")))
            : "<br>by the adapter " + code(text_at(model, "adapter"));
  }
  return html;
}

std::string reference_html(const RunRecord& record) {
  const Json& reference = object_at(record.config, "reference");
  const bool used =
      record.train.contains("logps/ref_chosen") || record.evaluations.contains("logps/ref_chosen");
  if (reference.empty() || !used) return {};
  const std::string path = text_at(reference, "path");
  std::string html = path.empty() ? "the policy as it was before training" : code(path);
  if (text_at(reference, "kind") == "cached") html += ", by log-probs kept on disk";
  if (text_at(reference, "moving") == "true") html += ", moving with the policy";
  return html;
}

std::string data_html(const RunRecord& record) {
  const Json& data = object_at(record.config, "data");
  if (data.empty()) return {};
  const auto train = number_at(record.facts, "train_rows");
  const auto held_out = detail::held_out_rows(record);
  const std::string eval = text_at(data, "eval");
  std::string html = code(text_at(data, "train"));
  if (train) html += fmt::format(": {:.0f} rows train", *train);
  if (eval.empty()) {
    html += held_out ? fmt::format(", the last {:.0f} are held out", *held_out)
                     : std::string(", none held out");
  } else {
    html +=
        "<br>" + code(eval) + (held_out ? fmt::format(": {:.0f} rows held out", *held_out) : "");
  }
  return html;
}

std::string optimizer_html(const RunRecord& record) {
  const Json& options = object_at(record.config, "optimizer");
  if (options.empty()) return {};
  const auto text = [&](std::string_view key) { return escape_html(text_at(options, key)); };
  std::string html =
      fmt::format("AdamW, learning rate {} ({}", text("learning_rate"), text("schedule"));
  if (number_at(options, "warmup_steps").value_or(0) > 0) {
    html += fmt::format(", {} warm-up steps", text("warmup_steps"));
  }
  html += fmt::format("), betas {} and {}, weight decay {}", text("adam_beta1"), text("adam_beta2"),
                      text("weight_decay"));
  if (number_at(options, "max_grad_norm").value_or(0) > 0) {
    html += fmt::format(", gradients clipped at norm {}", text("max_grad_norm"));
  }
  return html;
}

std::string length_html(const RunRecord& record) {
  const Json& train = object_at(record.config, "train");
  std::string html = number(record.last_step());
  const auto total = number_at(record.facts, "total_steps");
  if (total && *total > record.last_step()) html += fmt::format(" of {:.0f}", *total);
  html += " steps";
  if (total && *total > record.last_step() && text_at(record.facts, "complete") == "true") {
    html += " (no evaluation was a new best for too long)";
  }
  const auto batch = number_at(train, "batch_size");
  if (batch) html += fmt::format(" of {:.0f} rows", *batch);
  const auto rows = number_at(record.facts, "train_rows");
  if (batch && rows && *rows > 0) {
    html += fmt::format(", {:.3g} times through the data", record.last_step() * *batch / *rows);
  }
  if (record.seconds > 0) html += ", in " + duration(record.seconds);
  return html;
}

std::string what_was_trained(const RunRecord& record) {
  FactTable table;
  table.add("Policy", model_html(record));
  table.add("Reference", reference_html(record));
  table.add("Data", data_html(record));
  table.add("Loss", loss_html(record));
  table.add("Optimizer", optimizer_html(record));
  table.add("Length", length_html(record));
  return heading("What was trained") + table.html();
}

// ---- Whether it worked ----

std::string_view css_class(Verdict::Outcome outcome) {
  switch (outcome) {
    case Verdict::Outcome::kBetter:
      return "better";
    case Verdict::Outcome::kWorse:
      return "worse";
    case Verdict::Outcome::kUnclear:
      return "unclear";
    default:
      return "unknown";
  }
}

std::string verdict_html(const Verdict& verdict) {
  std::string html = fmt::format("<p class=\"verdict {}\">{}</p>\n", css_class(verdict.outcome),
                                 escape_html(verdict.sentence));
  if (verdict.warnings.empty()) return html;
  html += "<ul class=\"warnings\">\n";
  for (const auto& warning : verdict.warnings) {
    html += fmt::format("<li>{}</li>\n", escape_html(warning));
  }
  return html + "</ul>\n";
}

std::string card(std::string_view name, const std::string& value, const std::string& detail) {
  return fmt::format("<div class=\"card\">{}<b>{}</b><span class=\"quiet\">{}</span></div>\n", name,
                     escape_html(value), escape_html(detail));
}

std::string cards_html(const RunRecord& record) {
  std::string cards;
  const auto held_out = [&](std::string_view name) {
    return detail::change_of(record.evaluations, name);
  };
  if (const auto accuracy = held_out("rewards/accuracies")) {
    const auto rows = detail::held_out_rows(record);
    std::string interval;
    if (rows) {
      const auto [low, high] = detail::wilson_interval(accuracy->after, *rows);
      interval = fmt::format("{:.1f} to {:.1f} % at 95 %", 100 * low, 100 * high);
    }
    cards += card("Accuracy, held out", percent(accuracy->after), interval);
  }
  const auto change = [&](std::string_view title, std::string_view name) {
    if (const auto values = held_out(name)) {
      cards += card(title, number(values->after), "before: " + number(values->before));
    }
  };
  change("Margin, held out", "rewards/margins");
  change("Loss, held out", "loss");
  change("KL, nats", "kl");
  cards += card("Steps", number(record.last_step()),
                record.seconds > 0 ? "in " + duration(record.seconds) : "");
  return "<div class=\"cards\">\n" + cards + "</div>\n";
}

struct ComparedMetric {
  std::string_view metric;
  std::string_view title;
  std::string_view what;
  bool is_share = false;
};

constexpr ComparedMetric kCompared[] = {
    {"loss", "Loss", "what training lowers"},
    {"rewards/accuracies", "Accuracy", "pairs whose chosen completion has the higher reward", true},
    {"rewards/margins", "Margin", "reward of chosen minus reward of rejected"},
    {"rewards/chosen", "Reward of chosen", "implicit, against the reference"},
    {"rewards/rejected", "Reward of rejected", ""},
    {"logps/chosen", "Log-prob of chosen", "nats a completion, by the policy"},
    {"logps/ref_chosen", "… by the reference", ""},
    {"logps/rejected", "Log-prob of rejected", "nats a completion, by the policy"},
    {"logps/ref_rejected", "… by the reference", ""},
    {"kl", "KL to the reference", "nats, on completions that the policy wrote"},
    {"mean_token_accuracy", "Token accuracy", "chosen tokens that the policy holds most likely",
     true},
    {"entropy", "Entropy", "nats a token, of the policy's choice"},
};

std::string before_and_after(const RunRecord& record) {
  std::string rows;
  for (const auto& [metric, title, what, is_share] : kCompared) {
    const auto change = detail::change_of(record.evaluations, metric);
    if (!change) continue;
    const auto show = is_share ? percent : number;
    rows += fmt::format(
        "<tr><th scope=\"row\">{}</th><td class=\"number\">{}</td><td class=\"number\">{}</td>"
        "<td class=\"what quiet\">{}</td></tr>\n",
        title, show(change->before), show(change->after), what);
  }
  if (rows.empty()) return {};
  const auto& steps = record.evaluations.begin()->second.steps;
  return heading("Before and after, on held-out rows") +
         fmt::format(
             "<table class=\"change\">\n<tr><th></th><th class=\"number\" scope=\"col\">step "
             "{}</th>"
             "<th class=\"number\" scope=\"col\">step {}</th><th class=\"what\"></th></tr>\n{}"
             "</table>\n",
             number(steps.front()), number(steps.back()), rows);
}

// ---- Samples ----

/// One completion in a column of its own.
std::string completion_html(std::string_view title, std::string_view css, const Json& line,
                            const std::string& key) {
  const auto tokens = number_at(line, key + "_tokens");
  std::string about;
  if (tokens) {
    about = fmt::format(", {} tokens{}", number(*tokens),
                        text_at(line, key + "_ended") == "true" ? "" : ", cut off there");
  }
  const std::string text = text_at(line, key);
  return fmt::format(
      "<div class=\"{}\"><p class=\"quiet\">{}{}</p><p class=\"text\">{}</p></div>\n", css, title,
      about, text.empty() ? "<span class=\"quiet\">(nothing)</span>" : escape_html(text));
}

/// The first and the last draw of one prompt.
struct PromptSamples {
  const Json* first = nullptr;
  const Json* last = nullptr;
};

std::string sample_html(const PromptSamples& samples) {
  const Json& first = *samples.first;
  const Json& last = *samples.last;
  const std::string policy = fmt::format("Policy at step {}", number_text(last, "step"));
  std::string pair;
  if (first.contains("reference")) {
    pair = completion_html("Reference", "reference", first, "reference");
  } else if (&first != &last) {
    pair = completion_html(fmt::format("Policy at step {}", number_text(first, "step")),
                           "reference", first, "policy");
  }
  pair += completion_html(policy, "policy", last, "policy");
  return fmt::format(
      "<div class=\"sample\">\n<p class=\"text prompt\">{}</p>\n"
      "<div class=\"pair\">\n{}</div>\n</div>\n",
      escape_html(text_at(first, "prompt")), pair);
}

std::string samples_html(const RunRecord& record) {
  std::map<double, PromptSamples> prompts;
  for (const Json& line : record.samples) {
    const auto index = number_at(line, "index");
    if (!index || std::isnan(*index)) continue;
    auto& prompt = prompts[*index];
    if (prompt.first == nullptr) prompt.first = &line;
    prompt.last = &line;
  }
  if (prompts.empty()) return {};
  const Json& sampling = object_at(record.config, "sampling");
  const auto temperature = number_at(sampling, "temperature");
  const std::string how =
      !temperature ? ""
      : *temperature == 0
          ? " Each token is the most likely one."
          : fmt::format(" Drawn at temperature {}, with the same random numbers each time.",
                        number(*temperature));
  std::string html =
      heading("What it writes") +
      "<p class=\"quiet\">Held-out prompts, each with a completion from before and one "
      "from after training." +
      how + "</p>\n";
  for (const auto& [index, samples] : prompts) html += sample_html(samples);
  return html;
}

// ---- Notes, repetition, environment ----

std::string notes_html(const RunRecord& record) {
  std::string items;
  for (const Json& note : record.notes) {
    const auto step = number_at(note, "step");
    items += fmt::format("<li>{}{}</li>\n",
                         step && *step > 0 ? fmt::format("Step {}: ", number(*step)) : "",
                         escape_html(text_at(note, "note")));
  }
  for (const auto& gap : record.gaps) {
    items += fmt::format("<li>This folder is not whole: {}</li>\n", escape_html(gap));
  }
  return items.empty() ? "" : heading("Notes of the run") + "<ul>\n" + items + "</ul>\n";
}

std::string command_line(const Json& environment) {
  const auto command = environment.find("command");
  if (command == environment.end() || !command->is_array()) return {};
  std::string line;
  for (const Json& word : *command) {
    if (!line.empty()) line += ' ';
    line += shell_word(word.is_string() ? word.get<std::string>() : detail::dump_json(word));
  }
  return line;
}

std::string repeat_command(const RunRecord& record) {
  std::string output = text_at(record.config, "output_dir");
  if (output.empty()) output = record.folder;
  while (output.size() > 1 && output.ends_with('/')) output.pop_back();
  std::string command = "prefopt train --config " + shell_word(output + "/config.json") +
                        " --set " + shell_word("output_dir=" + output + "-again");
  // What "all there are" meant is part of the result.
  if (const auto threads = number_at(record.environment, "threads")) {
    command += fmt::format(" --set train.threads={:.0f}", *threads);
  }
  return command;
}

std::string how_to_repeat(const RunRecord& record) {
  const std::string made_by = command_line(record.environment);
  const std::string folder = text_at(record.environment, "folder");
  std::string html = heading("How to repeat it");
  if (!folder.empty()) html += "<p>In the folder " + code(folder) + ":</p>\n";
  html += "<pre>" + escape_html(repeat_command(record)) + "</pre>\n";
  html +=
      "<p class=\"quiet\">With the same files, versions, processor kind and number of threads the "
      "result is the same to the last bit.</p>\n";
  if (!made_by.empty()) {
    html += "<p>This run was made by:</p>\n<pre>" + escape_html(made_by) + "</pre>\n";
  }
  return html;
}

std::string environment_html(const RunRecord& record) {
  const Json& environment = record.environment;
  const auto text = [&](std::string_view key) { return escape_html(text_at(environment, key)); };
  FactTable table;
  table.add("Started", text("started"));
  table.add("prefopt", text("prefopt"));
  table.add("LibTorch", text("libtorch"));
  table.add("Compiler", text("compiler"));
  std::string processor = text("cpu");
  if (!text("processors").empty()) processor += " × " + text("processors");
  if (!text("cpu_capability").empty()) processor += ", kernels for " + text("cpu_capability");
  table.add("Processor", processor);
  table.add("Threads", text("threads"));
  if (!text("memory_gib").empty()) table.add("Memory", text("memory_gib") + " GiB");
  table.add("System", text("system"));
  return environment.empty() ? "" : heading("Where it ran") + table.html();
}

std::string config_html(const RunRecord& record) {
  if (record.config.empty()) return {};
  return heading("All options") + "<pre>" + escape_html(detail::dump_json(record.config, 2)) +
         "</pre>\n";
}

std::string subtitle(const RunRecord& record) {
  const std::string started = text_at(record.environment, "started");
  const std::string version = text_at(record.environment, "prefopt");
  std::string text = "A training run";
  if (!version.empty()) text += " by prefopt " + version;
  if (!started.empty()) text += ", started " + started;
  return fmt::format("<p class=\"quiet\">{}</p>\n", escape_html(text));
}

std::string title_of(const RunRecord& record) {
  const std::string type = loss_type(record);
  return escape_html(run_name(record)) + (type.empty() ? "" : ": " + escape_html(type));
}

std::string page(const RunRecord& record) {
  const std::string title = title_of(record);
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
      "'unsafe-inline'\">\n<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n<h1>{}</h1>\n",
      title, detail::kReportStyle, title);
  html += subtitle(record);
  html += verdict_html(detail::judge(record));
  html += cards_html(record);
  html += what_was_trained(record);
  html += before_and_after(record);
  if (const auto charts = detail::charts_html(record); !charts.empty()) {
    html += heading("Over the steps") + charts;
  }
  html += samples_html(record);
  html += notes_html(record);
  html += how_to_repeat(record);
  html += environment_html(record);
  html += config_html(record);
  return html + "</body>\n</html>\n";
}

}  // namespace

std::string report_html(const std::string& run_dir) { return page(detail::read_run(run_dir)); }

std::string write_report(const std::string& run_dir) {
  const std::string path = (std::filesystem::path(run_dir) / "report.html").string();
  detail::write_file<CheckpointError>(path, report_html(run_dir));
  return path;
}

}  // namespace prefopt
