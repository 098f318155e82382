// SPDX-License-Identifier: Apache-2.0
#include <map>
#include <string>

#include "prefopt/dist/launch.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using Variables = std::map<std::string, std::string>;

Launch launch_with(const Variables& variables) {
  return launch_of([&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST_CASE("a process that nobody launched is alone", "[dist]") {
  const Launch alone = launch_with({{"MASTER_ADDR", "node1"}});
  CHECK(alone.launcher == "none");
  CHECK(alone.size == 1);
  // sbatch and salloc set these for the one process of a script.
  const Launch in_batch = launch_with({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}});
  CHECK(in_batch.launcher == "none");
  CHECK(in_batch.size == 1);
}

TEST_CASE("torchrun's agent keeps the store", "[dist]") {
  const Launch launch = launch_with({{"RANK", "5"},
                                     {"WORLD_SIZE", "8"},
                                     {"LOCAL_RANK", "1"},
                                     {"LOCAL_WORLD_SIZE", "4"},
                                     {"MASTER_ADDR", "node1"},
                                     {"MASTER_PORT", "29500"},
                                     {"TORCHELASTIC_RUN_ID", "none"},
                                     {"TORCHELASTIC_RESTART_COUNT", "2"},
                                     {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                     // One torchrun a node, started by srun.
                                     {"SLURM_PROCID", "1"},
                                     {"SLURM_STEP_ID", "0"},
                                     {"SLURM_STEP_NUM_TASKS", "2"}});
  CHECK(launch.launcher == "torchrun");
  CHECK(launch.rank == 5);
  CHECK(launch.size == 8);
  CHECK(launch.local_rank == 1);
  CHECK(launch.local_size == 4);
  CHECK(launch.host == "node1");
  CHECK(launch.port == 29500);
  CHECK(launch.agent_store);
  CHECK(launch.restart == 2);
}

TEST_CASE("Open MPI, PMI and a plain shell say rank and size by other names", "[dist]") {
  const Variables meeting = {{"MASTER_ADDR", "h"}, {"MASTER_PORT", "7"}};
  const auto with = [&](Variables more) {
    more.insert(meeting.begin(), meeting.end());
    return launch_with(more);
  };
  const Launch mpi = with({{"OMPI_COMM_WORLD_RANK", "3"},
                           {"OMPI_COMM_WORLD_SIZE", "4"},
                           {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                           {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}});
  CHECK(mpi.launcher == "mpirun");
  CHECK(mpi.rank == 3);
  CHECK(mpi.local_rank == 1);
  CHECK(mpi.local_size == 2);
  const Launch pmi = with({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}});
  CHECK(pmi.launcher == "pmi");
  CHECK(pmi.rank == 1);
  CHECK(pmi.local_rank == 1);
  CHECK(pmi.local_size == 2);
  const Launch shell =
      launch_with({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"PREFOPT_STORE", "/tmp/store"}});
  CHECK(shell.launcher == "shell");
  CHECK(shell.store_file == "/tmp/store");
  CHECK(shell.local_size == 2);
  CHECK(shell.restart == 0);
  // Alone, they need not meet.
  CHECK(launch_with({{"RANK", "0"}, {"WORLD_SIZE", "1"}}).launcher == "shell");
}

TEST_CASE("within a step of Slurm, ranks meet at its first machine", "[dist]") {
  Variables slurm = {{"SLURM_PROCID", "7"},
                     {"SLURM_STEP_NUM_TASKS", "9"},
                     {"SLURM_LOCALID", "0"},
                     {"SLURM_NODEID", "3"},
                     {"SLURM_STEP_ID", "0"},
                     {"SLURM_STEP_TASKS_PER_NODE", "2(x3),3"},
                     {"SLURM_STEP_NODELIST", "gpu[07-09,12],big1"},
                     {"SLURM_JOB_ID", "1234567"}};
  Launch launch = launch_with(slurm);
  CHECK(launch.launcher == "srun");
  CHECK(launch.rank == 7);
  CHECK(launch.local_size == 3);
  CHECK(launch.host == "gpu07");
  CHECK(launch.port == 20000 + 1234567 % 40000);
  slurm["SLURM_NODEID"] = "2";
  CHECK(launch_with(slurm).local_size == 2);
  slurm["SLURM_STEP_NODELIST"] = "one,two";
  CHECK(launch_with(slurm).host == "one");
  slurm["MASTER_ADDR"] = "head";
  slurm["MASTER_PORT"] = "5";
  launch = launch_with(slurm);
  CHECK(launch.host == "head");
  CHECK(launch.port == 5);
  slurm["SLURM_STEP_TASKS_PER_NODE"] = "2";
  slurm["SLURM_NODEID"] = "1";
  CHECK_THROWS_TEXT(launch_with(slurm), ConfigError,
                    "SLURM_STEP_TASKS_PER_NODE: expected tasks of node 1 as in '2(x3),1', got '2'");
}

TEST_CASE("of Slurm and PMI, the one that has started this process counts", "[dist]") {
  // srun --mpi=pmi2 -N 2 --ntasks-per-node 2: PMI's variables say nothing of machines.
  Variables both = {{"PMI_RANK", "3"},
                    {"PMI_SIZE", "4"},
                    {"SLURM_PROCID", "3"},
                    {"SLURM_LOCALID", "1"},
                    {"SLURM_NODEID", "1"},
                    {"SLURM_STEP_ID", "0"},
                    {"SLURM_STEP_NUM_TASKS", "4"},
                    {"SLURM_STEP_TASKS_PER_NODE", "2(x2)"},
                    {"SLURM_STEP_NODELIST", "gpu[1-2]"},
                    {"SLURM_JOB_ID", "7"}};
  const Launch by_srun = launch_with(both);
  CHECK(by_srun.launcher == "srun");
  CHECK(by_srun.rank == 3);
  CHECK(by_srun.local_rank == 1);
  CHECK(by_srun.local_size == 2);
  CHECK(by_srun.host == "gpu1");
  // MPICH's mpiexec in a job starts a helper a machine by srun, and each helper its ranks.
  both["SLURM_PROCID"] = "1";
  both["SLURM_STEP_NUM_TASKS"] = "2";
  both["MPI_LOCALRANKID"] = "1";
  both["MPI_LOCALNRANKS"] = "2";
  both["MASTER_ADDR"] = "gpu1";
  both["MASTER_PORT"] = "29500";
  const Launch by_mpiexec = launch_with(both);
  CHECK(by_mpiexec.launcher == "pmi");
  CHECK(by_mpiexec.rank == 3);
  CHECK(by_mpiexec.size == 4);
  CHECK(by_mpiexec.local_rank == 1);
}

TEST_CASE("variables of a launch that contradict each other are refused", "[dist]") {
  struct Case {
    Variables variables;
    std::string text;
  };
  const std::vector<Case> cases = {
      {{{"RANK", "0"}}, "WORLD_SIZE: expected a number with RANK, got none"},
      {{{"WORLD_SIZE", "2"}}, "RANK: expected a number with WORLD_SIZE, got none"},
      {{{"RANK", "2"}, {"WORLD_SIZE", "2"}}, "RANK: expected a number below WORLD_SIZE 2, got 2"},
      {{{"RANK", "-1"}, {"WORLD_SIZE", "2"}}, "RANK: expected a number from 0, got '-1'"},
      {{{"RANK", "1x"}, {"WORLD_SIZE", "2"}}, "RANK: expected a number from 0, got '1x'"},
      {{{"RANK", "0"}, {"WORLD_SIZE", "0"}}, "RANK: expected a number below WORLD_SIZE 0, got 0"},
      {{{"RANK", "0"}, {"WORLD_SIZE", "2"}},
       "2 ranks of shell: expected MASTER_ADDR and MASTER_PORT where they meet, or a new file "
       "PREFOPT_STORE, got '' and 0"},
      {{{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "h"}, {"MASTER_PORT", "70000"}},
       "2 ranks of shell: expected MASTER_ADDR and MASTER_PORT where they meet, or a new file "
       "PREFOPT_STORE, got 'h' and 70000"},
      {{{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "1"}},
       "LOCAL_RANK: expected a number below the ranks of this machine, 1 of 2, got 1"},
      {{{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_RANK", "1"}},
       "RANK: expected 1 as OMPI_COMM_WORLD_RANK, got 0; unset one of them"},
      {{{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"PMI_SIZE", "3"}},
       "WORLD_SIZE: expected 3 as PMI_SIZE, got 2; unset one of them"},
      {{{"RANK", "0"},
        {"WORLD_SIZE", "2"},
        {"TORCHELASTIC_USE_AGENT_STORE", "True"},
        {"PREFOPT_STORE", "f"}},
       "PREFOPT_STORE: expected none under torchrun, which has a store, got 'f'"},
  };
  for (const Case& one : cases) {
    CHECK_THROWS_TEXT(launch_with(one.variables), ConfigError, one.text);
  }
}

}  // namespace
}  // namespace prefopt
