// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/export.h"
#include "prefopt/options.h"

namespace prefopt {

struct Launch;  // prefopt/dist/launch.h

/// Gloo adds up on the host, NCCL on GPUs; kAuto: NCCL where it was compiled and a GPU is there.
enum class RanksBackend { kAuto, kGloo, kNccl };

/// Parts of the training that each rank keeps a slice of (ZeRO, 1910.02054): the optimizer's state
/// (stage 1), gradients too (stage 2), weights too (stage 3).
enum class Sharding { kNone, kOptimizer, kGradients, kWeights };

/// kFast: the bits of a sum depend on how many ranks there are. kTree: gradients are added up in
/// the order of a binary tree over the micro-batches, the same bits for 1, 2, 4, 8, … ranks.
enum class SumOrder { kFast, kTree };

struct RanksOptions {
  RanksBackend backend = RanksBackend::kAuto;
  Sharding sharding = Sharding::kNone;
  SumOrder order = SumOrder::kFast;
  std::int64_t bucket_mib = 25;         ///< of gradients that are sent together
  std::int64_t timeout_seconds = 1800;  ///< that a rank waits for the others

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Thrown where another rank has ended, or is late by more than the timeout.
class PREFOPT_API LostRankError : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

/// The processes that train one policy together. Every member is called by all of them in the same
/// order; results are the same bits on each. Throws LostRankError where another rank has ended, or
/// is late by more than the timeout: no more calls then.
class PREFOPT_API Ranks {
 public:
  /// Waits until what was begun is done. Called once.
  using Wait = std::function<void()>;

  virtual ~Ranks() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual const RanksOptions& options() const = 0;
  /// Returns "gloo", "gloo and nccl", or "none" of one process.
  virtual std::string backend() const = 0;

  /// Begins to add up a contiguous tensor over all ranks, in place.
  virtual Wait begin_sum(const at::Tensor& values) = 0;
  /// Begins to add up `all` over all ranks, [size, n], and to write this rank's row into `own`,
  /// [n]. `all` is lost.
  virtual Wait begin_sum_scatter(const at::Tensor& own, const at::Tensor& all) = 0;
  /// Returns the tensors of all ranks, [size, …], which have one shape and dtype.
  virtual at::Tensor gather(const at::Tensor& own) = 0;
  /// The same into `all`, contiguous. The default gathers and copies.
  virtual void gather_into(const at::Tensor& all, const at::Tensor& own);
  /// Writes rank 0's values into those of the others, in place; contiguous.
  virtual void broadcast(const at::Tensor& values) = 0;
  /// Returns when all ranks have called it.
  virtual void barrier() = 0;

  /// Adds up each tensor over all ranks, in place.
  void sum(const std::vector<at::Tensor>& tensors);
  /// Returns the rows of all ranks, joined along the first dimension in the order of ranks. The
  /// other dimensions and the dtype have to agree.
  at::Tensor gather_rows(const at::Tensor& rows);
  /// Returns one text of each rank. One message up to 4 KiB, two above.
  std::vector<std::string> gather_text(const std::string& own);
  /// Returns whether `is_true` holds on all ranks.
  bool agree(bool is_true);
  /// Throws on all ranks if `trouble` is not null on one: "rank 1: …", or each its own exception
  /// where all have the same. Keeps the types of prefopt/error.h.
  void share_trouble(const std::exception_ptr& trouble);
  /// Runs `work`, which calls no member, and shares its trouble.
  void together(const std::function<void()>& work);
};

/// Returns the ranks of a run of one process: sums and gathers are what was given.
PREFOPT_API std::shared_ptr<Ranks> one_process(const RanksOptions& options = {});

/// Joins the processes that `launch` describes; waits for all of them. Throws ConfigError for
/// options that do not fit, DeviceError where this build cannot connect or the others do not come.
PREFOPT_API std::shared_ptr<Ranks> join_ranks(const RanksOptions& options, const Launch& launch);

/// Returns whether this build can train over several processes.
PREFOPT_API bool has_ranks();

namespace detail {

/// A text that carries an exception to other ranks; empty for none.
PREFOPT_API std::string trouble_text(const std::exception_ptr& trouble);
/// Throws if one of the texts, each of a rank, is not empty. `own` is that of this rank.
PREFOPT_API void throw_trouble(const std::vector<std::string>& texts,
                               const std::exception_ptr& own);

}  // namespace detail
}  // namespace prefopt
