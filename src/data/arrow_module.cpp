// SPDX-License-Identifier: Apache-2.0
// The only source that includes Arrow: a module by itself, which is loaded when a Parquet or Arrow
// file is read. A row becomes the text of the JSON object that a line of JSONL would hold.
#include "data/arrow_module.h"

#include <arrow/api.h>
#include <arrow/io/file.h>
#include <arrow/ipc/reader.h>
#include <arrow/util/config.h>
#include <arrow/util/float16.h>
#include <arrow/util/utf8.h>
#include <parquet/arrow/reader.h>
#include <parquet/exception.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <exception>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "prefopt/version.h"

namespace prefopt::detail {
namespace {

using arrow::Type;

/// An end of the reading; its text is the part of the error behind the file's name.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string quoted(const arrow::Status& status) { return "'" + status.message() + "'"; }

template <class T>
T value_of(arrow::Result<T> result, const std::string& expected) {
  if (!result.ok()) throw Failure(expected + ", got " + quoted(result.status()));
  return std::move(result).ValueUnsafe();
}

void check(const arrow::Status& status, const std::string& expected) {
  if (!status.ok()) throw Failure(expected + ", got " + quoted(status));
}

// Rows as JSON.

void add_text(std::string& json, std::string_view text) {
  constexpr char kDigits[] = "0123456789abcdef";
  const auto is_plain = [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != '"' && c != '\\';
  };
  json += '"';
  for (auto at = text.begin(); at != text.end();) {
    const auto end = std::find_if_not(at, text.end(), is_plain);
    json.append(at, end);
    if (end == text.end()) break;
    const char c = *end;
    if (c == '"' || c == '\\') {
      json += '\\';
      json += c;
    } else {
      json += "\\u00";
      json += kDigits[c >> 4];
      json += kDigits[c & 15];
    }
    at = end + 1;
  }
  json += '"';
}

template <class Number>
void add_number(std::string& json, Number value) {
  char digits[32];
  const auto [end, ignored] = std::to_chars(digits, digits + sizeof digits, value);
  json.append(digits, end);
}

/// As Python's json writes it, with a point or an exponent, and with NaN and Infinity.
void add_real(std::string& json, double value) {
  if (!std::isfinite(value)) {
    json += std::isnan(value) ? "NaN" : value > 0 ? "Infinity" : "-Infinity";
    return;
  }
  const std::size_t begin = json.size();
  add_number(json, value);
  if (json.find_first_of(".e", begin) == std::string::npos) json += ".0";
}

/// The value of a type that has no JSON.
void add_mark(std::string& json, const arrow::DataType& type, bool may_hold_text) {
  std::string name;
  add_text(name, type.ToString());
  json += "{\"";
  json += kArrowTypeMark;
  json.append(name, 1);  // without its first quotation mark
  json += may_hold_text ? ":\"bytes\"}" : ":null}";
}

class JsonWriter {
 public:
  // A level less than the parser of rows takes.
  static constexpr int kMostDepth = 62;

  /// The object of row `i`.
  const std::string& row(const arrow::RecordBatch& batch, std::int64_t i) {
    json_.clear();
    json_ += '{';
    for (int c = 0; c < batch.num_columns(); ++c) {
      if (c > 0) json_ += ',';
      add_text(json_, batch.schema()->field(c)->name());
      json_ += ':';
      add(*batch.column(c), i, kMostDepth);
    }
    json_ += '}';
    return json_;
  }

 private:
  template <class Array>
  const Array& as(const arrow::Array& array) {
    return static_cast<const Array&>(array);
  }

  void add(const arrow::Array& array, std::int64_t i, int depth) {
    if (json_.size() > kMaxArrowRow) {
      throw Failure("expected a row of at most 64 MiB, got a longer one");
    }
    if (array.IsNull(i) || array.type_id() == Type::NA) {
      json_ += "null";
      return;
    }
    if (depth == 0) return add_mark(json_, *array.type(), /*may_hold_text=*/true);
    switch (array.type_id()) {
      case Type::BOOL:
        json_ += as<arrow::BooleanArray>(array).Value(i) ? "true" : "false";
        return;
      case Type::INT8:
        return add_number(json_, as<arrow::Int8Array>(array).Value(i));
      case Type::INT16:
        return add_number(json_, as<arrow::Int16Array>(array).Value(i));
      case Type::INT32:
        return add_number(json_, as<arrow::Int32Array>(array).Value(i));
      case Type::INT64:
        return add_number(json_, as<arrow::Int64Array>(array).Value(i));
      case Type::UINT8:
        return add_number(json_, as<arrow::UInt8Array>(array).Value(i));
      case Type::UINT16:
        return add_number(json_, as<arrow::UInt16Array>(array).Value(i));
      case Type::UINT32:
        return add_number(json_, as<arrow::UInt32Array>(array).Value(i));
      case Type::UINT64:
        return add_number(json_, as<arrow::UInt64Array>(array).Value(i));
      case Type::HALF_FLOAT: {
        const std::uint16_t bits = as<arrow::HalfFloatArray>(array).Value(i);
        return add_real(json_, arrow::util::Float16::FromBits(bits).ToDouble());
      }
      case Type::FLOAT:
        return add_real(json_, as<arrow::FloatArray>(array).Value(i));
      case Type::DOUBLE:
        return add_real(json_, as<arrow::DoubleArray>(array).Value(i));
      case Type::STRING:
        return add_text(json_, as<arrow::StringArray>(array).GetView(i));
      case Type::LARGE_STRING:
        return add_text(json_, as<arrow::LargeStringArray>(array).GetView(i));
      case Type::STRING_VIEW:
        return add_text(json_, as<arrow::StringViewArray>(array).GetView(i));
      case Type::BINARY:
        return add_bytes(array, as<arrow::BinaryArray>(array).GetView(i));
      case Type::LARGE_BINARY:
        return add_bytes(array, as<arrow::LargeBinaryArray>(array).GetView(i));
      case Type::BINARY_VIEW:
        return add_bytes(array, as<arrow::BinaryViewArray>(array).GetView(i));
      case Type::LIST:
        return add_list(as<arrow::ListArray>(array), i, depth);
      case Type::LARGE_LIST:
        return add_list(as<arrow::LargeListArray>(array), i, depth);
      case Type::LIST_VIEW:
        return add_list(as<arrow::ListViewArray>(array), i, depth);
      case Type::LARGE_LIST_VIEW:
        return add_list(as<arrow::LargeListViewArray>(array), i, depth);
      case Type::FIXED_SIZE_LIST:
        return add_list(as<arrow::FixedSizeListArray>(array), i, depth);
      case Type::STRUCT:
        return add_struct(as<arrow::StructArray>(array), i, depth);
      case Type::MAP:
        return add_map(as<arrow::MapArray>(array), i, depth);
      case Type::DICTIONARY: {
        const auto& encoded = as<arrow::DictionaryArray>(array);
        return add(*encoded.dictionary(), encoded.GetValueIndex(i), depth);
      }
      case Type::EXTENSION:
        return add(*as<arrow::ExtensionArray>(array).storage(), i, depth);
      case Type::FIXED_SIZE_BINARY:
        return add_mark(json_, *array.type(), /*may_hold_text=*/true);
      default:
        return add_mark(json_, *array.type(), /*may_hold_text=*/false);
    }
  }

  /// Bytes that are UTF-8 are a text.
  void add_bytes(const arrow::Array& array, std::string_view bytes) {
    const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
    if (arrow::util::ValidateUTF8(data, static_cast<std::int64_t>(bytes.size()))) {
      add_text(json_, bytes);
    } else {
      add_mark(json_, *array.type(), /*may_hold_text=*/true);
    }
  }

  template <class List>
  void add_list(const List& list, std::int64_t i, int depth) {
    const std::int64_t begin = list.value_offset(i);
    const std::int64_t end = begin + list.value_length(i);
    json_ += '[';
    for (std::int64_t at = begin; at < end; ++at) {
      if (at > begin) json_ += ',';
      add(*list.values(), at, depth - 1);
    }
    json_ += ']';
  }

  void add_struct(const arrow::StructArray& array, std::int64_t i, int depth) {
    json_ += '{';
    for (int f = 0; f < array.num_fields(); ++f) {
      if (f > 0) json_ += ',';
      add_text(json_, array.struct_type()->field(f)->name());
      json_ += ':';
      add(*array.field(f), i, depth - 1);
    }
    json_ += '}';
  }

  void add_map(const arrow::MapArray& map, std::int64_t i, int depth) {
    const bool has_names = map.keys()->type_id() == Type::STRING;
    if (!has_names) return add_mark(json_, *map.type(), /*may_hold_text=*/true);
    const std::int64_t begin = map.value_offset(i);
    json_ += '{';
    for (std::int64_t at = begin; at < begin + map.value_length(i); ++at) {
      if (at > begin) json_ += ',';
      add_text(json_, as<arrow::StringArray>(*map.keys()).GetView(at));
      json_ += ':';
      add(*map.items(), at, depth - 1);
    }
    json_ += '}';
  }

  std::string json_;
};

// Files as batches of rows.

/// The batches of one file, in order.
class Batches {
 public:
  virtual ~Batches() = default;
  virtual const arrow::Schema& schema() const = 0;
  /// Returns null at the end.
  virtual std::shared_ptr<arrow::RecordBatch> next() = 0;
  /// Passes over parts of the file that hold at most `count` rows together, as far as it is known
  /// without reading them, and returns how many rows these are. Only between batches.
  virtual std::int64_t skip_parts(std::int64_t /*count*/) { return 0; }
};

/// Limits what a damaged file can ask for: packed text is rarely a thousandth of itself.
std::int64_t memory_for(std::int64_t file_bytes) {
  constexpr std::int64_t kLeast = std::int64_t{256} << 20;
  constexpr std::int64_t kMostAnyway = std::int64_t{1} << 40;
  return file_bytes > kMostAnyway / 1024 ? kMostAnyway : kLeast + 1024 * file_bytes;
}

std::shared_ptr<arrow::io::ReadableFile> open_file(const std::string& path) {
  return value_of(arrow::io::ReadableFile::Open(path), "expected a readable file");
}

/// Row group after row group, a few rows at a time.
class ParquetBatches final : public Batches {
 public:
  ParquetBatches(const std::shared_ptr<arrow::io::ReadableFile>& file, arrow::MemoryPool& pool) {
    // One row may be long, so few rows; pages are read one by one, not whole columns.
    constexpr std::int64_t kRows = 256;
    parquet::ReaderProperties pages(&pool);
    pages.enable_buffered_stream();
    pages.set_page_checksum_verification(true);
    parquet::ArrowReaderProperties columns(/*use_threads=*/false);
    columns.set_batch_size(kRows);
    columns.set_pre_buffer(false);
    parquet::arrow::FileReaderBuilder builder;
    check(builder.Open(file, pages), kExpected);
    check(builder.memory_pool(&pool)->properties(columns)->Build(&reader_), kExpected);
    check(reader_->GetSchema(&schema_), kExpected);
  }

  const arrow::Schema& schema() const override { return *schema_; }

  std::shared_ptr<arrow::RecordBatch> next() override {
    while (true) {
      if (!group_) {
        if (next_group_ == reader_->num_row_groups()) return nullptr;
        group_ = in_group(reader_->GetRecordBatchReader(std::vector<int>{next_group_}));
        ++next_group_;
      }
      auto batch = in_group(group_->Next());
      if (batch) return batch;
      group_.reset();
    }
  }

  std::int64_t skip_parts(std::int64_t count) override {
    std::int64_t skipped = 0;
    while (!group_ && next_group_ < reader_->num_row_groups()) {
      const auto metadata = reader_->parquet_reader()->metadata()->RowGroup(next_group_);
      if (skipped + metadata->num_rows() > count) break;
      skipped += metadata->num_rows();
      ++next_group_;
    }
    return skipped;
  }

 private:
  static constexpr char kExpected[] = "expected a whole Parquet file";

  template <class T>
  T in_group(arrow::Result<T> result) {
    if (result.ok()) return std::move(result).ValueUnsafe();
    const int group = group_ ? next_group_ - 1 : next_group_;
    throw Failure(std::string(kExpected) + ", got " + quoted(result.status()) + " in " +
                  bad_column(group) + "row group " + std::to_string(group));
  }

  /// Names the first column of a row group that cannot be read by itself; empty: all can be.
  std::string bad_column(int group) const {
    const auto& names = *reader_->parquet_reader()->metadata()->schema();
    for (int c = 0; c < names.num_columns(); ++c) {
      bool is_good = false;
      try {
        is_good = reader_->GetRecordBatchReader({group}, {c}).ok() && reads_all(group, c);
      } catch (const std::exception&) {
        // It is the bad one.
      }
      if (!is_good) return "column '" + names.Column(c)->path()->ToDotString() + "' of ";
    }
    return {};
  }

  bool reads_all(int group, int column) const {
    const auto batches = reader_->GetRecordBatchReader({group}, {column}).ValueOrDie();
    while (true) {
      const auto batch = batches->Next();
      if (!batch.ok() || *batch == nullptr) return batch.ok();
    }
  }

  std::unique_ptr<parquet::arrow::FileReader> reader_;
  std::shared_ptr<arrow::Schema> schema_;
  std::shared_ptr<arrow::RecordBatchReader> group_;
  int next_group_ = 0;
};

constexpr char kWholeArrow[] = "expected a whole Arrow file";

/// Returns a batch whose offsets, indices and texts are those of a sound file.
std::shared_ptr<arrow::RecordBatch> sound(arrow::Result<std::shared_ptr<arrow::RecordBatch>> read,
                                          std::int64_t number) {
  const std::string place = " in record batch " + std::to_string(number);
  const auto fail = [&](const arrow::Status& status) {
    throw Failure(std::string(kWholeArrow) + ", got " + quoted(status) + place);
  };
  if (!read.ok()) fail(read.status());
  auto batch = std::move(read).ValueUnsafe();
  if (batch == nullptr) return batch;
  if (const auto status = batch->ValidateFull(); !status.ok()) fail(status);
  return batch;
}

arrow::ipc::IpcReadOptions reading(arrow::MemoryPool& pool) {
  auto options = arrow::ipc::IpcReadOptions::Defaults();
  options.memory_pool = &pool;
  options.use_threads = false;
  return options;
}

class FileBatches final : public Batches {
 public:
  FileBatches(const std::shared_ptr<arrow::io::ReadableFile>& file, arrow::MemoryPool& pool)
      : reader_(
            value_of(arrow::ipc::RecordBatchFileReader::Open(file, reading(pool)), kWholeArrow)) {}

  const arrow::Schema& schema() const override { return *reader_->schema(); }

  std::shared_ptr<arrow::RecordBatch> next() override {
    if (next_ == reader_->num_record_batches()) return nullptr;
    auto batch = sound(reader_->ReadRecordBatch(next_), next_);
    ++next_;
    return batch;
  }

 private:
  std::shared_ptr<arrow::ipc::RecordBatchFileReader> reader_;
  int next_ = 0;
};

class StreamBatches final : public Batches {
 public:
  StreamBatches(const std::shared_ptr<arrow::io::ReadableFile>& file, arrow::MemoryPool& pool)
      : reader_(value_of(arrow::ipc::RecordBatchStreamReader::Open(file, reading(pool)),
                         kWholeArrow)) {}

  const arrow::Schema& schema() const override { return *reader_->schema(); }

  std::shared_ptr<arrow::RecordBatch> next() override {
    std::shared_ptr<arrow::RecordBatch> batch;
    const auto status = reader_->ReadNext(&batch);
    if (!status.ok()) return sound(status, next_);
    return sound(std::move(batch), next_++);
  }

 private:
  std::shared_ptr<arrow::ipc::RecordBatchStreamReader> reader_;
  std::int64_t next_ = 0;
};

std::unique_ptr<Batches> open_batches(const std::shared_ptr<arrow::io::ReadableFile>& file,
                                      ArrowKind kind, arrow::MemoryPool& pool) {
  switch (kind) {
    case ArrowKind::kFile:
      return std::make_unique<FileBatches>(file, pool);
    case ArrowKind::kStream:
      return std::make_unique<StreamBatches>(file, pool);
    case ArrowKind::kParquet:
      break;
  }
  return std::make_unique<ParquetBatches>(file, pool);
}

void check_names(const arrow::FieldVector& fields, const std::string& what) {
  std::set<std::string> names;
  for (const auto& field : fields) {
    if (names.insert(field->name()).second) continue;
    throw Failure("expected " + what + " of different names, got '" + field->name() + "' twice");
  }
}

/// Checks the structs in the types of fields; `path` leads to these.
void check_inner_names(const arrow::FieldVector& fields, const std::string& path, int depth) {
  if (depth == 0) return;  // what lies deeper is not read
  for (const auto& field : fields) {
    const std::string name = path.empty() ? field->name() : path + "." + field->name();
    if (field->type()->id() == Type::STRUCT) {
      check_names(field->type()->fields(), "fields in '" + name + "'");
    }
    check_inner_names(field->type()->fields(), name, depth - 1);
  }
}

}  // namespace

struct ArrowRows {
  ArrowRows(const char* path, ArrowKind kind)
      : file_(open_file(path)),
        pool_(arrow::default_memory_pool(),
              memory_for(value_of(file_->GetSize(), "expected a readable file"))),
        batches_(open_batches(file_, kind, pool_)) {
    check_names(batches_->schema().fields(), "columns");
    check_inner_names(batches_->schema().fields(), "", JsonWriter::kMostDepth);
  }

  /// Returns null at the end.
  const std::string* next() {
    if (!load()) return nullptr;
    return &writer_.row(*batch_, row_++);
  }

  void skip(std::int64_t count) {
    while (count > 0) {
      if (!batch_ || row_ == batch_->num_rows()) {
        batch_.reset();
        count -= batches_->skip_parts(count);
        if (count == 0 || !load()) return;
      }
      const std::int64_t here = std::min(count, batch_->num_rows() - row_);
      row_ += here;
      count -= here;
    }
  }

 private:
  /// Returns whether there is a row at `row_` of the batch.
  bool load() {
    while (!batch_ || row_ == batch_->num_rows()) {
      batch_ = batches_->next();
      row_ = 0;
      if (!batch_) return false;
    }
    return true;
  }

  std::shared_ptr<arrow::io::ReadableFile> file_;
  arrow::CappedMemoryPool pool_;
  std::unique_ptr<Batches> batches_;
  std::shared_ptr<arrow::RecordBatch> batch_;
  std::int64_t row_ = 0;
  JsonWriter writer_;
};

namespace {

/// Returns what `work` does; for an exception `failed`, with its text in `error`.
template <class Work>
auto guarded(ArrowError* error, decltype(std::declval<Work>()()) failed, Work&& work) noexcept
    -> decltype(work()) {
  const auto tell = [&](std::string_view text) {
    const std::size_t size = std::min(text.size(), sizeof error->text - 1);
    std::memcpy(error->text, text.data(), size);
    error->text[size] = '\0';
  };
  try {
    return work();
  } catch (const Failure& failure) {
    tell(failure.what());
  } catch (const std::bad_alloc&) {
    tell("expected a file that fits into memory, got one that asks for too much");
  } catch (const std::exception& exception) {
    tell(std::string("expected a whole file, got '") + exception.what() + "'");
  }
  return failed;
}

ArrowRows* open_rows(const char* path, ArrowKind kind, ArrowError* error) {
  return guarded(error, static_cast<ArrowRows*>(nullptr),
                 [&] { return std::make_unique<ArrowRows>(path, kind).release(); });
}

int next_row(ArrowRows* rows, const char** json, std::size_t* size, ArrowError* error) {
  return guarded(error, -1, [&] {
    const std::string* row = rows->next();
    if (row == nullptr) return 0;
    *json = row->data();
    *size = row->size();
    return 1;
  });
}

int skip_rows(ArrowRows* rows, std::int64_t count, ArrowError* error) {
  return guarded(error, -1, [&] {
    rows->skip(count);
    return 0;
  });
}

void close_rows(ArrowRows* rows) { delete rows; }

}  // namespace
}  // namespace prefopt::detail

extern "C" __attribute__((visibility("default"))) const prefopt::detail::ArrowModule*
prefopt_arrow_module() {
  using namespace prefopt::detail;
  arrow::util::InitializeUTF8();
  static constexpr ArrowModule kModule{.version = PREFOPT_VERSION_STRING,
                                       .arrow_version = ARROW_VERSION_STRING,
                                       .open = open_rows,
                                       .next = next_row,
                                       .skip = skip_rows,
                                       .close = close_rows};
  return &kModule;
}
