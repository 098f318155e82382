// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "prefopt/online/rollout.h"
#include "prefopt/online/selection.h"

// Values as bytes, for other ranks of the same program.
namespace prefopt::detail {

template <class T>
concept Number = std::is_arithmetic_v<T>;

class Packer {
 public:
  template <Number T>
  void operator()(const T& value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  template <class T>
  void operator()(const std::optional<T>& value) {
    (*this)(value.has_value());
    if (value) (*this)(*value);
  }
  void operator()(const std::string& text) { put_all(text); }
  template <Number T>
  void operator()(const std::vector<T>& values) {
    put_all(values);
  }

  std::string take() { return std::move(bytes_); }

 private:
  template <class Values>
  void put_all(const Values& values) {
    (*this)(static_cast<std::int64_t>(values.size()));
    bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof values[0]);
  }

  std::string bytes_;
};

/// Reads what a Packer was given, in the same order.
class Unpacker {
 public:
  explicit Unpacker(std::string_view bytes) : bytes_(bytes) {}

  template <Number T>
  void operator()(T& value) {
    take_into(&value, sizeof value);
  }
  template <class T>
  void operator()(std::optional<T>& value) {
    if (take<bool>()) value = take<T>();
  }
  void operator()(std::string& text) { take_all(text); }
  template <Number T>
  void operator()(std::vector<T>& values) {
    take_all(values);
  }
  template <class T>
  T take() {
    T value{};
    (*this)(value);
    return value;
  }

  bool is_empty() const { return bytes_.empty(); }

 private:
  template <class Values>
  void take_all(Values& values) {
    values.resize(static_cast<std::size_t>(take<std::int64_t>()));
    take_into(values.data(), values.size() * sizeof values[0]);
  }
  void take_into(void* to, std::size_t size) {
    if (size == 0) return;
    std::memcpy(to, bytes_.data(), size);
    bytes_.remove_prefix(size);
  }

  std::string_view bytes_;
};

/// Packs a rollout, or unpacks into it.
template <class Bytes, class R>
void pack_rollout(Bytes& bytes, R& rollout) {
  bytes(rollout.prompt);
  bytes(rollout.completion);
  bytes(rollout.token_logps);
  bytes(rollout.ended);
  bytes(rollout.rewards);
  bytes(rollout.group);
  bytes(rollout.acted);
  bytes(rollout.turn_ends);
  bytes(rollout.token_rewards);
  bytes(rollout.source);
  bytes(rollout.prompt_text);
  bytes(rollout.text);
}

/// The same for a selected row.
template <class Bytes, class R>
void pack_selected(Bytes& bytes, R& row) {
  bytes(row.chosen);
  bytes(row.rejected);
  bytes(row.label_prob);
  bytes(row.chosen_win_rate);
  bytes(row.rejected_win_rate);
  bytes(row.advantage);
  bytes(row.weight);
}

}  // namespace prefopt::detail
