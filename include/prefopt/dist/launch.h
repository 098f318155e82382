// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "prefopt/export.h"

namespace prefopt {

/// A process's place among those that were started together, and where they meet.
struct Launch {
  std::string launcher = "none";  ///< none, torchrun, mpirun, pmi, srun, shell
  int rank = 0;
  int size = 1;
  int local_rank = 0;  ///< among those of this machine
  int local_size = 1;
  std::string store_file = {};  ///< where they meet; empty: at host and port
  std::string host = {};
  int port = 0;
  bool agent_store = false;  ///< whether the launcher listens there, else rank 0 does
  std::int64_t restart = 0;  ///< how often the launcher has started them before
};

/// As std::getenv: null for a variable that is not set.
using GetVariable = std::function<const char*(const char*)>;

/// Reads what the launcher has set: torchrun and a plain shell (RANK, WORLD_SIZE), Open MPI
/// (OMPI_COMM_WORLD_RANK), Slurm's srun (SLURM_PROCID, only within a step: sbatch and salloc set it
/// for one process too), MPICH and Intel MPI (PMI_RANK, where it is not that of srun). Several
/// ranks meet in the file PREFOPT_STORE, else at MASTER_ADDR and MASTER_PORT; under srun, else at
/// the step's first machine. Throws ConfigError for variables that contradict each other or are
/// missing.
PREFOPT_API Launch launch_of(const GetVariable& environment);

/// The same of this process's environment.
PREFOPT_API Launch launch_of_process();

}  // namespace prefopt
