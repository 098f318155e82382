// SPDX-License-Identifier: Apache-2.0
#include "prefopt/dist/launch.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "prefopt/error.h"

namespace prefopt {
namespace {

/// The variables of an environment.
class Variables {
 public:
  explicit Variables(const GetVariable& environment) : environment_(environment) {}

  /// Returns an empty text for a variable that is not set.
  std::string text(const char* name) const {
    const char* const value = environment_(name);
    return value == nullptr ? "" : value;
  }
  bool has(const char* name) const { return !text(name).empty(); }

  std::optional<int> number(const char* name) const {
    const std::string value = text(name);
    if (value.empty()) return std::nullopt;
    int number = 0;
    const char* const end = value.data() + value.size();
    const auto [last, error] = std::from_chars(value.data(), end, number);
    if (error != std::errc() || last != end || number < 0) {
      throw ConfigError(fmt::format("{}: expected a number from 0, got '{}'", name, value));
    }
    return number;
  }

  int needed(const char* name, std::string_view because) const {
    if (const auto value = number(name)) return *value;
    throw ConfigError(fmt::format("{}: expected a number {}, got none", name, because));
  }

 private:
  const GetVariable& environment_;
};

/// The variables in which a launcher says who a process is.
struct Names {
  const char *launcher, *rank, *size, *local_rank, *local_size;
};
constexpr Names kShell = {"shell", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"};
constexpr Names kOpenMpi = {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                            "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"};
constexpr Names kPmi = {"pmi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"};
constexpr Names kSlurm = {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID",
                          "SLURM_STEP_TASKS_PER_NODE"};

Launch read_place(const Variables& of, const Names& names) {
  Launch launch;
  launch.launcher = names.launcher;
  launch.rank = of.needed(names.rank, fmt::format("with {}", names.size));
  launch.size = of.needed(names.size, fmt::format("with {}", names.rank));
  if (launch.size < 1 || launch.rank >= launch.size) {
    throw ConfigError(fmt::format("{}: expected a number below {} {}, got {}", names.rank,
                                  names.size, launch.size, launch.rank));
  }
  // Without them all are on one machine.
  launch.local_rank = of.number(names.local_rank).value_or(launch.rank);
  launch.local_size = launch.size;
  return launch;
}

/// Returns the tasks on a node in Slurm's "2(x3),1": 2 each on three nodes, 1 on the fourth.
int tasks_on(std::string_view counts, int node, const char* name) {
  const std::string_view whole = counts;
  const auto take = [&] {
    int number = 0;
    const auto [end, error] = std::from_chars(counts.data(), counts.data() + counts.size(), number);
    if (error != std::errc()) {
      throw ConfigError(fmt::format("{}: expected tasks of node {} as in '2(x3),1', got '{}'", name,
                                    node, whole));
    }
    counts.remove_prefix(static_cast<std::size_t>(end - counts.data()));
    return number;
  };
  for (int left = node;;) {
    const int tasks = take();
    int nodes = 1;
    if (counts.starts_with("(x")) {
      counts.remove_prefix(2);
      nodes = take();
      if (counts.starts_with(')')) counts.remove_prefix(1);
    }
    if (left < nodes) return tasks;
    left -= nodes;
    if (counts.starts_with(',')) counts.remove_prefix(1);
  }
}

/// Returns the first of Slurm's "node[03-07,12],other".
std::string first_host(const std::string& list) {
  const auto end = list.find_first_of("[,");
  std::string host = list.substr(0, end);
  if (end == std::string::npos || list[end] == ',') return host;
  return host + list.substr(end + 1, list.find_first_of("-,]", end + 1) - end - 1);
}

void read_local_size(const Variables& of, const Names& names, Launch& launch) {
  if (names.launcher == kSlurm.launcher) {
    if (!of.has(names.local_size)) return;
    launch.local_size = tasks_on(of.text(names.local_size), of.number("SLURM_NODEID").value_or(0),
                                 names.local_size);
  } else if (const auto size = of.number(names.local_size)) {
    launch.local_size = *size;
  }
  if (launch.local_rank >= launch.local_size || launch.local_size > launch.size) {
    throw ConfigError(
        fmt::format("{}: expected a number below the ranks of this machine, {} of {}, got {}",
                    names.local_rank, launch.local_size, launch.size, launch.local_rank));
  }
}

void read_meeting(const Variables& of, Launch& launch) {
  launch.store_file = of.text("PREFOPT_STORE");
  launch.agent_store = of.text("TORCHELASTIC_USE_AGENT_STORE") == "True";
  if (!launch.store_file.empty()) {
    if (launch.agent_store) {
      throw ConfigError("PREFOPT_STORE: expected none under torchrun, which has a store, got '" +
                        launch.store_file + "'");
    }
    return;
  }
  launch.host = of.text("MASTER_ADDR");
  if (launch.launcher == kSlurm.launcher && launch.host.empty()) {
    launch.host = first_host(of.text("SLURM_STEP_NODELIST"));
    // One port for each job: jobs of one machine do not meet.
    launch.port = 20000 + of.needed("SLURM_JOB_ID", "in a step of Slurm") % 40000;
  }
  if (const auto port = of.number("MASTER_PORT")) launch.port = *port;
  if (!launch.host.empty() && launch.port > 0 && launch.port < 65536) return;
  throw ConfigError(
      fmt::format("{} ranks of {}: expected MASTER_ADDR and MASTER_PORT where they meet, or a new "
                  "file PREFOPT_STORE, got '{}' and {}",
                  launch.size, launch.launcher, launch.host, launch.port));
}

/// Throws where a script has set another rank or size than the launcher.
void check_against(const Variables& of, const Names& names, const Launch& launch) {
  const auto check = [&](const char* name, const char* known, int value) {
    const auto other = of.number(name);
    if (!other || *other == value) return;
    throw ConfigError(fmt::format("{}: expected {} as {}, got {}; unset one of them", known, *other,
                                  name, value));
  };
  check(names.rank, kShell.rank, launch.rank);
  check(names.size, kShell.size, launch.size);
}

const Names* names_of(const Variables& of) {
  if (of.has(kShell.rank) || of.has(kShell.size)) return &kShell;
  if (of.has(kOpenMpi.rank)) return &kOpenMpi;
  // Outside of a step, sbatch and salloc have set it for the one process of the script.
  const bool in_step = of.has(kSlurm.rank) && of.has("SLURM_STEP_ID") && of.has(kSlurm.size);
  if (!of.has(kPmi.rank)) return in_step ? &kSlurm : nullptr;
  // srun sets PMI's variables too, but none of places on a machine. An mpiexec that starts its own
  // processes by srun leaves them the variables of a step with other ranks.
  const bool is_step_by_pmi = in_step && of.number(kPmi.rank) == of.number(kSlurm.rank) &&
                              of.number(kPmi.size) == of.number(kSlurm.size);
  return is_step_by_pmi ? &kSlurm : &kPmi;
}

}  // namespace

Launch launch_of(const GetVariable& environment) {
  const Variables of(environment);
  const Names* const names = names_of(of);
  if (names == nullptr) return {};
  Launch launch = read_place(of, *names);
  read_local_size(of, *names, launch);
  if (of.has("TORCHELASTIC_RUN_ID") || of.has("TORCHELASTIC_RESTART_COUNT")) {
    launch.launcher = "torchrun";
    launch.restart = of.number("TORCHELASTIC_RESTART_COUNT").value_or(0);
  } else if (names == &kShell) {
    check_against(of, kOpenMpi, launch);
    check_against(of, kPmi, launch);
  }
  if (launch.size > 1) read_meeting(of, launch);
  return launch;
}

Launch launch_of_process() {
  return launch_of([](const char* name) { return std::getenv(name); });
}

}  // namespace prefopt
