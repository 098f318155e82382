// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "prefopt/data/tokenizer.h"
#include "prefopt/model/decoder.h"
#include "prefopt/model/reference.h"
#include "prefopt/train/run.h"
#include "train/run_folder.h"

namespace prefopt::detail {

struct ParameterCount {
  std::int64_t all = 0;
  std::int64_t trained = 0;
};

ParameterCount count_parameters(const Decoder& policy);

/// The tokenizer that the options name, else the adapter's or the model's own, else bytes for a
/// fresh model; `tokenizer` of the options becomes its name, and stays empty where there is none.
std::shared_ptr<const Tokenizer> open_run_tokenizer(ModelOptions& options);

/// Files of a checkpoint next to the weights, so that it can be used without naming anything: the
/// tokenizer, how rows were read, the chat format where one was used or chosen, and, of a whole
/// model, all end tokens.
FolderFiles companions_of(const RunOptions& options, const Decoder& policy,
                          const Tokenizer& tokenizer, std::int64_t message_rows);

/// Loads it, or draws fresh weights; what the options leave to the model is filled in. Throws
/// ConfigError for a fresh model that is smaller than the tokenizer's vocabulary.
std::shared_ptr<Decoder> make_policy(ModelOptions& options, const Tokenizer& tokenizer,
                                     const Note& note);

/// Decides what `auto` means for micro-batches of at most `rows` tokens.
void set_checkpointing(LoopOptions& options, std::int64_t rows, Decoder& policy, const Note& note);

/// Throws ConfigError for options that exclude each other.
void check_reference(const ReferenceOptions& options);

/// Throws ConfigError where the reference's own tokenizer gives texts other tokens than the run's,
/// which both models get; only notes it if the config named that one (`named`).
void check_reference_tokens(const ReferenceOptions& options, const Tokenizer& tokenizer, bool named,
                            const Note& note);

/// The reference of the options, of `policy` before training where they name no other model.
/// Throws ConfigError for one with another vocabulary.
std::shared_ptr<Reference> make_reference(const ReferenceOptions& options,
                                          const ModelOptions& model, const Decoder& policy,
                                          CacheLevel level);

/// Weights of a checkpoint, into the tensors that the optimizer holds. Throws CheckpointError where
/// one is missing or differs in shape or dtype.
void load_weights(const std::string& checkpoint, const Decoder& policy);

}  // namespace prefopt::detail
