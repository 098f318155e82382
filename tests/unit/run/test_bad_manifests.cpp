// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "run/checkpoint.h"
#include "support/catch.h"
#include "support/counts.h"
#include "support/files.h"
#include "support/memory_limit.h"
#include "support/temp_dir.h"

namespace prefopt::detail {
namespace {

using testing_support::put;

struct BadManifest {
  std::string text;
  std::string defect;  // behind the path of manifest.json
};

std::string manifest(const std::string& files, const std::string& step = "7") {
  return R"({"format":"prefopt-checkpoint-1","step":)" + step + R"(,"files":)" + files + "}";
}

std::vector<BadManifest> bad_manifests() {
  const std::string format = ": expected an object of format prefopt-checkpoint-1, got ";
  const std::string step = ": expected 'step' to be a number of steps, got ";
  const std::string names = ": expected names of files in this folder, got ";
  const std::string entry = ": expected 'x' to have 'bytes' and 'crc32', got ";
  return {
      {"[]", format + "[]"},
      {"7", format + "7"},
      {"{}", format + "{}"},
      {R"({"format":"prefopt-checkpoint-0"})", format + R"({"format":"prefopt-checkpoint-0"})"},
      {"[" + std::string(999, '1') + "]",
       ": expected JSON, got something else: number overflow "
       "parsing '" +
           std::string(275, '1') + "…"},
      {R"({"step":1,"step":2})", ": expected JSON, got the key 'step' twice"},
      {manifest(std::string(64, '[') + std::string(64, ']')),
       ": expected JSON, got nesting deeper than 64 levels"},
      {manifest("{}", "-1"), step + "-1"},
      {manifest("{}", "1.5"), step + "1.5"},
      {manifest("{}", "null"), step + "null"},
      {manifest("{}", "18446744073709551615"), step + "18446744073709551615"},
      {manifest("[]"), ": expected 'files' to be an object, got []"},
      {manifest("null"), ": expected 'files' to be an object, got null"},
      {manifest(R"({"":{}})"), names + R"("")"},
      {manifest(R"({".":{}})"), names + R"(".")"},
      {manifest(R"({"..":{}})"), names + R"("..")"},
      {manifest(R"({"../x":{}})"), names + R"("../x")"},
      {manifest(R"({"x\u0000":{}})"), names + R"("x\u0000")"},
      {manifest(R"({"x":7})"), entry + "7"},
      {manifest(R"({"x":{"bytes":1}})"), entry + R"({"bytes":1})"},
      {manifest(R"({"x":{"bytes":-1,"crc32":""}})"), entry + R"({"bytes":-1,"crc32":""})"},
      {manifest(R"({"x":{"bytes":1,"crc32":0}})"), entry + R"({"bytes":1,"crc32":0})"},
  };
}

}  // namespace

TEST_CASE("bad manifests of checkpoints are refused by field", "[run]") {
  const testing_support::TempDir dir;
  const std::string path = dir.file("manifest.json");
  put(dir.file("x"), "x");
  for (const auto& [text, defect] : bad_manifests()) {
    put(path, text);
    const testing_support::MemoryLimit limit;
    CHECK(defect_of_checkpoint(dir.path()) == path + defect);
  }
  testing_support::report_count("bad checkpoint manifests refused", bad_manifests().size());
  write_manifest(dir.path(), 7);
  CHECK(defect_of_checkpoint(dir.path()).empty());
  CHECK(step_of_checkpoint(dir.path()) == 7);
}

}  // namespace prefopt::detail
