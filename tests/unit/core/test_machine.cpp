// SPDX-License-Identifier: Apache-2.0
#include <filesystem>

#include "core/machine.h"
#include "support/catch.h"
#include "support/files.h"
#include "support/temp_dir.h"

namespace prefopt::detail {
namespace {

using testing_support::put;
using testing_support::TempDir;

/// Files of the system, below their own folder.
class System {
 public:
  System() {
    for (const char* folder : {"/proc/self", "/sys/fs/cgroup/own/group"}) {
      std::filesystem::create_directories(root_.path() + folder);
    }
    put(root_.file("proc/cpuinfo"),
        "processor\t: 0\nmodel name\t: Some Processor 9\n\nprocessor\t: 1\nmodel name\t: x\n");
    put(root_.file("proc/meminfo"), "MemTotal:        8000000 kB\nMemAvailable:    3000000 kB\n");
  }
  void write(const std::string& name, const std::string& bytes) const {
    put(root_.file(name), bytes);
  }
  Machine read() const { return read_machine(root_.path()); }

 private:
  TempDir root_;
};

TEST_CASE("A machine without control groups", "[core]") {
  const Machine machine = System().read();
  CHECK(machine.processor == "Some Processor 9");
  CHECK(machine.total_memory == 8000000LL * 1024);
  CHECK(machine.usable_memory() == 3000000LL * 1024);
  CHECK_FALSE(machine.core_limit.has_value());
  CHECK(machine.cores >= 1);
  CHECK(machine.usable_cores() == machine.cores);
}

TEST_CASE("A control group's limits count", "[core]") {
  const System system;
  system.write("proc/self/cgroup", "1:name=systemd:/\n0::/own/group\n");
  system.write("sys/fs/cgroup/own/group/memory.max", "1000000000\n");
  system.write("sys/fs/cgroup/own/group/memory.current", "400000000\n");
  system.write("sys/fs/cgroup/own/group/cpu.max", "50000 100000\n");
  const Machine machine = system.read();
  CHECK(machine.memory_limit == 1000000000);
  CHECK(machine.usable_memory() == 600000000);
  CHECK(machine.core_limit == 0.5);
  CHECK(machine.usable_cores() == 1);
}

TEST_CASE("A container sees its group as the root, and no limit as max", "[core]") {
  const System system;
  system.write("proc/self/cgroup", "0::/\n");
  system.write("sys/fs/cgroup/memory.max", "max\n");
  system.write("sys/fs/cgroup/cpu.max", "max 100000\n");
  const Machine machine = system.read();
  CHECK_FALSE(machine.memory_limit.has_value());
  CHECK_FALSE(machine.core_limit.has_value());
  CHECK(machine.usable_memory() == 3000000LL * 1024);
}

TEST_CASE("A system that says nothing", "[core]") {
  const TempDir empty;
  const Machine machine = read_machine(empty.path());
  CHECK(machine.processor == "");
  CHECK_FALSE(machine.usable_memory().has_value());
  CHECK(machine.cores >= 1);
}

}  // namespace
}  // namespace prefopt::detail
