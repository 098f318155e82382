// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <filesystem>
#include <ostream>

#include "cli/commands.h"
#include "core/chart.h"
#include "core/file.h"
#include "lab/experiment.h"
#include "lab/instructions.h"
#include "prefopt/error.h"

namespace prefopt::cli {
namespace {

void print_list(std::ostream& out) {
  for (const lab::Experiment& experiment : lab::experiments()) {
    // A paper from before arXiv has author and year.
    const bool has_id = experiment.source.find(' ') == std::string::npos;
    out << fmt::format("{:<24} {} ({}{})\n", experiment.name, experiment.question,
                       has_id ? "arXiv:" : "", experiment.source);
  }
}

void make_folder(const std::string& path) {
  std::error_code why;
  std::filesystem::create_directories(path, why);
  if (why) {
    throw DataError(fmt::format("{}: expected a folder to write to, got {}", path, why.message()));
  }
}

void write_files(const lab::Report& report, const std::string& folder) {
  for (const lab::Data& data : report.data) {
    detail::write_file<DataError>(folder + "/" + data.name + ".csv", lab::to_csv(data));
  }
  for (const lab::Picture& picture : report.pictures) {
    detail::write_file<DataError>(folder + "/" + picture.name + ".svg",
                                  detail::to_svg(picture.chart));
  }
}

void check(const LabArguments& arguments) {
  constexpr int kMostSeeds = 1'000'000, kLastFirst = 1'000'000'000;
  if (arguments.seeds < 0 || arguments.seeds == 1 || arguments.seeds > kMostSeeds) {
    throw ConfigError(
        fmt::format("--seeds: expected from 2 to {}, or 0 for as many as usual, got {}", kMostSeeds,
                    arguments.seeds));
  }
  if (arguments.first_seed < 0 || arguments.first_seed > kLastFirst) {
    throw ConfigError(fmt::format("--first-seed: expected from 0 to {}, got {}", kLastFirst,
                                  arguments.first_seed));
  }
}

lab::Settings settings_of(const LabArguments& arguments, const lab::Experiment& experiment) {
  const int usual = arguments.quick ? experiment.quick_seeds : experiment.seeds;
  return {.quick = arguments.quick,
          .seeds = {arguments.first_seed, arguments.seeds > 0 ? arguments.seeds : usual}};
}

}  // namespace

void run_lab(const LabArguments& arguments, std::ostream& out, std::ostream& err) {
  if (arguments.name.empty()) return print_list(out);
  check(arguments);
  std::vector<const lab::Experiment*> chosen;
  if (arguments.name == "all") {
    for (const lab::Experiment& experiment : lab::experiments()) chosen.push_back(&experiment);
  } else {
    chosen.push_back(&lab::find_experiment(arguments.name));
  }
  lab::hold_instructions();
  make_folder(arguments.out);
  for (const lab::Experiment* experiment : chosen) {
    err << "lab: " << experiment->name << std::endl;  // flushed: it may take a while
    const lab::Report report = experiment->run(settings_of(arguments, *experiment));
    for (const lab::Verdict& verdict : report.verdicts) {
      out << experiment->name << ": " << lab::to_line(verdict) << '\n';
    }
    write_files(report, arguments.out);
  }
}

}  // namespace prefopt::cli
