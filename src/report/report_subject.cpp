// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "core/html.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "report/report_html.h"
#include "report/report_parts.h"
#include "report/verdict.h"

namespace prefopt::detail {
namespace {

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

const FieldDoc* find_option(const LossEntry& entry, std::string_view name) {
  const auto found = std::find_if(entry.options.begin(), entry.options.end(),
                                  [&](const FieldDoc& option) { return option.name == name; });
  return found == entry.options.end() ? nullptr : &*found;
}

/// Options whose value is not the default, and those that the formula names.
std::string loss_options(const Json& config, const LossEntry* entry) {
  std::string list;
  for (const auto& [key, value] : config.items()) {
    if (key == "type") continue;
    const std::string text = text_at(config, key);
    const FieldDoc* doc = entry == nullptr ? nullptr : find_option(*entry, key);
    const bool is_default =
        doc != nullptr && (doc->default_value == text ||
                           (value.is_number() && doc->default_value == number_html(value)));
    const bool in_formula = entry != nullptr && entry->info.formula.find(key) != std::string::npos;
    if (is_default && !in_formula) continue;
    list += fmt::format("<br>{} = {}{}", code_html(key), code_html(text),
                        doc == nullptr ? "" : " – " + escape_html(doc->doc));
  }
  return list;
}

std::string loss_html(const RunRecord& record) {
  const std::string type = loss_type(record);
  if (type.empty()) return {};
  const LossEntry* entry = known_loss(type);
  std::string html = code_html(type);
  if (entry != nullptr) {
    html += ": " + code_html(entry->info.formula);
    if (!entry->info.source.empty()) html += " (" + source_link(entry->info.source) + ")";
  }
  html += loss_options(object_at(record.config, "loss"), entry);
  if (entry == nullptr) return html;
  html += "<br><span class=\"quiet\">";
  if (entry->info.formula.find("delta") != std::string::npos) {
    html +=
        "delta: how much higher the policy's log-ratio to the reference is for the chosen "
        "completion than for the rejected one. ";
  }
  return html + "Other options are at their defaults.</span>";
}

std::string model_html(const RunRecord& record) {
  const Json& model = object_at(record.config, "model");
  const Json& shape = object_at(model, "decoder");
  if (model.empty()) return {};
  const std::string path = text_at(model, "path");
  std::string html = path.empty() ? "fresh weights" : code_html(path);
  const auto size = number_at(record.facts, "parameters");
  const auto trained = number_at(record.facts, "trained_parameters");
  if (size) html += fmt::format(", {:.0f} parameters", *size);
  if (size && trained && *trained < *size)
    html += fmt::format(", {:.0f} of them trained", *trained);
  html += fmt::format(" in {}", text_html(model, "dtype"));
  if (!shape.empty()) {
    html += fmt::format("<br>{} layers, hidden size {}, vocabulary {}",
                        text_html(shape, "num_hidden_layers"), text_html(shape, "hidden_size"),
                        text_html(shape, "vocab_size"));
  }
  if (text_at(model, "use_lora") == "true" || !text_at(model, "adapter").empty()) {
    const Json& lora = object_at(model, "lora");
    html += text_at(model, "adapter").empty()
                ? fmt::format("<br>by a low-rank adapter, r = {}, alpha = {}", text_html(lora, "r"),
                              text_html(lora, "lora_alpha"))
                : "<br>by the adapter " + code_html(text_at(model, "adapter"));
  }
  return html;
}

std::string reference_html(const RunRecord& record) {
  const Json& reference = object_at(record.config, "reference");
  const bool used =
      record.train.contains("logps/ref_chosen") || record.evaluations.contains("logps/ref_chosen");
  if (reference.empty() || !used) return {};
  const std::string path = text_at(reference, "path");
  std::string html = path.empty() ? "the policy as it was before training" : code_html(path);
  if (text_at(reference, "kind") == "cached") html += ", by log-probs kept on disk";
  if (text_at(reference, "moving") == "true") html += ", moving with the policy";
  return html;
}

std::string data_html(const RunRecord& record) {
  const Json& data = object_at(record.config, "data");
  if (data.empty()) return {};
  const auto train = number_at(record.facts, "train_rows");
  const auto held_out = held_out_rows(record);
  const std::string eval = text_at(data, "eval");
  std::string html = code_html(text_at(data, "train"));
  if (train) {
    html +=
        *train > 0 ? fmt::format(": {:.0f} rows train", *train) : std::string(", read as a stream");
  }
  if (eval.empty()) {
    html += held_out ? fmt::format(", the last {:.0f} are held out", *held_out)
                     : std::string(", none held out");
  } else {
    html += "<br>" + code_html(eval) +
            (held_out ? fmt::format(": {:.0f} rows held out", *held_out) : "");
  }
  return html;
}

std::string optimizer_html(const RunRecord& record) {
  const Json& options = object_at(record.config, "optimizer");
  if (options.empty()) return {};
  const auto value = [&](std::string_view key) { return number_at(options, key).value_or(0); };
  const auto text = [&](std::string_view key) { return number_html(value(key)); };
  const std::string type = text_at(options, "type");
  const std::string_view name = type == "adafactor" ? "Adafactor"
                                : type == "rmsprop" ? "RMSprop"
                                                    : "AdamW";
  std::string html = fmt::format("{}, learning rate {} ({}", name, text("learning_rate"),
                                 text_html(options, "schedule"));
  if (value("warmup_steps") > 0) html += fmt::format(", {} warm-up steps", text("warmup_steps"));
  html += ")";
  if (name == "AdamW") {
    html += fmt::format(", betas {} and {}", text("adam_beta1"), text("adam_beta2"));
  }
  html += fmt::format(", weight decay {}", text("weight_decay"));
  if (value("max_grad_norm") > 0) {
    html += fmt::format(", gradients clipped at norm {}", text("max_grad_norm"));
  }
  return html;
}

/// Returns the rows of a step, which runs of an earlier version kept in another place.
std::optional<double> rows_of_step(const Json& config) {
  const auto rows = number_at(object_at(config, "batch"), "rows");
  return rows ? rows : number_at(object_at(config, "train"), "batch_size");
}

std::string length_html(const RunRecord& record) {
  std::string html = number_html(record.last_step());
  const auto total = number_at(record.facts, "total_steps");
  if (total && *total > record.last_step()) html += fmt::format(" of {:.0f}", *total);
  html += " steps";
  const auto batch = rows_of_step(record.config);
  if (batch) html += fmt::format(" of {:.0f} rows", *batch);
  const auto rows = number_at(record.facts, "train_rows");
  if (batch && rows && *rows > 0) {
    html += fmt::format(", {:.3g} times through the data", record.last_step() * *batch / *rows);
  }
  if (record.seconds > 0) html += ", in " + duration_html(record.seconds);
  if (total && *total > record.last_step() && text_at(record.facts, "complete") == "true") {
    html += "; it ended early, as no evaluation was a new best for too long";
  }
  return html;
}

}  // namespace

std::string loss_type(const RunRecord& record) {
  return text_at(object_at(record.config, "loss"), "type");
}

std::string subject_html(const RunRecord& record) {
  FactTable table;
  table.add("Policy", model_html(record));
  table.add("Reference", reference_html(record));
  table.add("Data", data_html(record));
  table.add("Loss", loss_html(record));
  table.add("Optimizer", optimizer_html(record));
  table.add("Length", length_html(record));
  return heading_html("What was trained") + table.html();
}

}  // namespace prefopt::detail
