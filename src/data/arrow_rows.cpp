// SPDX-License-Identifier: Apache-2.0
#include "data/arrow_rows.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "core/json.h"
#include "data/file_kind.h"
#include "prefopt/error.h"
#include "prefopt/version.h"

namespace prefopt::detail {
namespace {

namespace fs = std::filesystem;

#ifdef PREFOPT_ARROW_MODULE

/// Returns where the module may be: next to the program or the library, in the folder of libraries
/// that belongs to a folder of programs, and where the run path leads.
std::vector<std::string> module_places() {
  std::vector<fs::path> folders;
  std::error_code ignored;
  if (const auto program = fs::read_symlink("/proc/self/exe", ignored); !program.empty()) {
    folders.push_back(program.parent_path());
  }
  Dl_info own{};
  if (::dladdr(reinterpret_cast<const void*>(&arrow_kind_name), &own) != 0 && own.dli_fname) {
    const fs::path library(own.dli_fname);
    if (library.is_absolute()) folders.push_back(library.parent_path());
  }
  std::vector<std::string> places;
  for (const fs::path& folder : folders) {
    places.push_back((folder / PREFOPT_ARROW_MODULE).string());
    places.push_back((folder / ".." / PREFOPT_LIBRARY_FOLDER / PREFOPT_ARROW_MODULE).string());
  }
  std::erase_if(places, [&](const std::string& place) { return !fs::exists(place, ignored); });
  places.emplace_back(PREFOPT_ARROW_MODULE);
  return places;
}

/// Returns the functions of the module, which stays loaded. Throws Error with the reason alone.
const ArrowModule& load_module() {
  // Arrow's symbols stay out of the way of LibTorch's.
  void* library = ::dlopen(module_places().front().c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw Error(::dlerror());
  using Entry = const ArrowModule* (*)();
  const auto entry = reinterpret_cast<Entry>(::dlsym(library, kArrowModuleSymbol));
  const std::string version = entry == nullptr ? "no version" : entry()->version;
  if (version != PREFOPT_VERSION_STRING) {
    throw Error(fmt::format("one of {}", entry == nullptr ? version : "prefopt " + version));
  }
  return *entry();
}

const ArrowModule& arrow_module(const std::string& path, ArrowKind kind) {
  try {
    static const ArrowModule& module = load_module();
    return module;
  } catch (const Error& error) {
    throw DataError(fmt::format(
        "{}: expected the module {} of prefopt {} to read {} with, got '{}'; docs/data-files.md "
        "says where it and Arrow's libraries are looked for",
        path, PREFOPT_ARROW_MODULE, PREFOPT_VERSION_STRING, arrow_kind_name(kind), error.what()));
  }
}

#else

const ArrowModule& arrow_module(const std::string& path, ArrowKind kind) {
  throw DataError(fmt::format(
      "{}: expected JSON lines or a JSON array, got {}, and this prefopt was built without Arrow; "
      "build it with -DPREFOPT_WITH_ARROW=ON, or {}",
      path, arrow_kind_name(kind), kAsLines));
}

#endif

class ModuleRows final : public RowFile {
 public:
  ModuleRows(const ArrowModule& module, std::string path, ArrowKind kind)
      : module_(module), path_(std::move(path)) {
    rows_ = module_.open(path_.c_str(), kind, &error_);
    if (rows_ == nullptr) fail(path_);
  }
  ~ModuleRows() override { module_.close(rows_); }
  ModuleRows(const ModuleRows&) = delete;
  ModuleRows& operator=(const ModuleRows&) = delete;

  bool next(FileRow& row) override {
    const char* json = nullptr;
    std::size_t size = 0;
    const int got = module_.next(rows_, &json, &size, &error_);
    if (got < 0) fail(fmt::format("{}:{}", path_, number_ + 1));
    if (got == 0) return false;
    row.number = ++number_;
    row.text.assign(json, size);
    return true;
  }

  void skip(std::int64_t count) override {
    if (module_.skip(rows_, count, &error_) < 0) fail(path_);
    number_ += count;
  }

 private:
  [[noreturn]] void fail(std::string_view where) const {
    throw DataError(fmt::format("{}: {}", where, shown_text(error_.text)));
  }

  const ArrowModule& module_;
  std::string path_;
  ArrowRows* rows_ = nullptr;
  std::int64_t number_ = 0;  // rows that were passed
  ArrowError error_;
};

}  // namespace

std::string_view arrow_kind_name(ArrowKind kind) {
  switch (kind) {
    case ArrowKind::kFile:
      return "an Arrow file";
    case ArrowKind::kStream:
      return "an Arrow stream";
    case ArrowKind::kParquet:
      break;
  }
  return "a Parquet file";
}

std::unique_ptr<RowFile> open_arrow_rows(const std::string& path, ArrowKind kind) {
  return std::make_unique<ModuleRows>(arrow_module(path, kind), path, kind);
}

}  // namespace prefopt::detail
