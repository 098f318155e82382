// SPDX-License-Identifier: Apache-2.0
#pragma once

// The front door: a loss by its name, rows from a file, a model, a trainer, a whole run. Programs
// that want one loss alone include its header, `prefopt/losses/pair/dpo.h`.

#include "prefopt/data/dataset.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/report/report.h"
#include "prefopt/run/run.h"
#include "prefopt/train/trainer.h"
#include "prefopt/version.h"
