// SPDX-License-Identifier: Apache-2.0
#include "prefopt/report/report.h"

#include <ostream>

#include "cli/commands.h"

namespace prefopt::cli {

void run_report(const ReportArguments& arguments, std::ostream& out) {
  if (arguments.print) {
    out << report_html(arguments.run);
  } else {
    out << write_report(arguments.run) << '\n';
  }
}

}  // namespace prefopt::cli
