// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <iterator>
#include <ostream>
#include <string_view>
#include <vector>

#include "cli/commands.h"
#include "cli/finding.h"
#include "core/json.h"
#include "prefopt/error.h"

namespace prefopt::cli {
namespace {

using detail::Json;

std::string_view name_of(Status status) {
  switch (status) {
    case Status::kOk:
      return "ok";
    case Status::kWarning:
      return "warning";
    case Status::kProblem:
      break;
  }
  return "problem";
}

std::vector<Finding> examine(const DoctorArguments& arguments) {
  std::vector<Finding> findings = examine_machine(arguments.out);
  std::ranges::move(examine_files(arguments), std::back_inserter(findings));
  return findings;
}

void print(const std::vector<Finding>& findings, std::ostream& out) {
  for (const Finding& finding : findings) {
    out << fmt::format("{:<8} {}: {}\n", name_of(finding.status), finding.subject, finding.found);
    if (!finding.advice.empty()) out << fmt::format("{:<8} {}\n", "", finding.advice);
  }
}

Json to_json(const std::vector<Finding>& findings) {
  Json list = Json::array();
  for (const Finding& finding : findings) {
    list.push_back({{"subject", finding.subject},
                    {"status", name_of(finding.status)},
                    {"found", finding.found},
                    {"advice", finding.advice}});
  }
  return {{"findings", std::move(list)}};
}

}  // namespace

void run_doctor(const DoctorArguments& arguments, std::ostream& out) {
  const auto findings = examine(arguments);
  if (arguments.json) {
    out << detail::dump_json(to_json(findings)) << '\n';
  } else {
    print(findings, out);
  }
  const auto problem = std::find_if(findings.begin(), findings.end(), [](const Finding& finding) {
    return finding.status == Status::kProblem;
  });
  if (problem == findings.end()) return;
  out.flush();
  if (problem->error) std::rethrow_exception(problem->error);
  throw Error(fmt::format("{}: {}; {}", problem->subject, problem->found, problem->advice));
}

}  // namespace prefopt::cli
