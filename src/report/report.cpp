// SPDX-License-Identifier: Apache-2.0
#include "prefopt/report/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <set>
#include <string>
#include <string_view>

#include "core/file.h"
#include "core/html.h"
#include "core/json.h"
#include "prefopt/error.h"
#include "report/report_charts.h"
#include "report/report_html.h"
#include "report/report_parts.h"
#include "report/report_style.h"
#include "report/run_record.h"

namespace prefopt {
namespace detail {
namespace {

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

std::string run_name(const RunRecord& record) {
  const auto path = std::filesystem::path(record.folder).lexically_normal();
  const auto name = path.has_filename() ? path.filename() : path.parent_path().filename();
  return name.empty() ? record.folder : name.string();
}

std::string notes_html(const RunRecord& record) {
  std::string items;
  std::set<std::string> said;  // a resumed run says much of what it said at its start
  for (const Json& note : record.notes) {
    if (!said.insert(text_at(note, "note")).second) continue;
    const auto step = number_at(note, "step");
    items += fmt::format("<li>{}{}</li>\n",
                         step && *step > 0 ? fmt::format("Step {}: ", number_html(*step)) : "",
                         text_html(note, "note"));
  }
  for (const auto& gap : record.gaps) {
    items += fmt::format("<li>This folder is not whole: {}</li>\n", escape_html(gap));
  }
  return items.empty() ? "" : heading_html("Notes of the run") + "<ul>\n" + items + "</ul>\n";
}

std::string command_line(const Json& environment) {
  const auto command = environment.find("command");
  if (command == environment.end() || !command->is_array()) return {};
  std::string line;
  for (const Json& word : *command) {
    if (!line.empty()) line += ' ';
    line += shell_word(word.is_string() ? word.get<std::string>() : dump_json(word));
  }
  return line;
}

std::string repeat_command(const RunRecord& record) {
  std::string output = text_at(record.config, "output_dir");
  if (output.empty()) output = record.folder;
  while (output.size() > 1 && output.ends_with('/')) output.pop_back();
  std::string command = "prefopt train --config " + shell_word(output + "/config.json") +
                        " --set " + shell_word("output_dir=" + output + "-again");
  // The number that "all there are" meant is part of the result.
  if (const auto threads = number_at(record.environment, "threads")) {
    command += fmt::format(" --set machine.threads={:.0f}", *threads);
  }
  return command;
}

std::string how_to_repeat(const RunRecord& record) {
  const std::string made_by = command_line(record.environment);
  const std::string folder = text_at(record.environment, "folder");
  std::string html = heading_html("How to repeat it");
  if (!folder.empty()) html += "<p>In the folder " + code_html(folder) + ":</p>\n";
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
  const auto text = [&](std::string_view key) { return text_html(environment, key); };
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
  return environment.empty() ? "" : heading_html("Where it ran") + table.html();
}

std::string config_html(const RunRecord& record) {
  if (record.config.empty()) return {};
  return heading_html("All options") + "<pre>" + escape_html(dump_json(record.config, 2)) +
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
  return escape_html(run_name(record)) + (type.empty() ? "" : ": trained by " + escape_html(type));
}

std::string page(const RunRecord& record) {
  const std::string title = title_of(record);
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
      "'unsafe-inline'\">\n<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n<h1>{}</h1>\n",
      title, kReportStyle, title);
  html += subtitle(record);
  html += verdict_html(record);
  html += subject_html(record);
  html += evaluations_html(record);
  if (const auto charts = charts_html(record); !charts.empty()) {
    html += heading_html("Over the steps") + charts;
  }
  html += rounds_html(record);
  html += trees_html(record);
  html += samples_html(record);
  html += notes_html(record);
  html += how_to_repeat(record);
  html += environment_html(record);
  html += config_html(record);
  return html + "</body>\n</html>\n";
}

}  // namespace
}  // namespace detail

std::string report_html(const std::string& run_dir) {
  return detail::page(detail::read_run(run_dir));
}

std::string write_report(const std::string& run_dir) {
  const std::string path = (std::filesystem::path(run_dir) / "report.html").string();
  detail::write_file<CheckpointError>(path, report_html(run_dir));
  return path;
}

}  // namespace prefopt
