// What every folder may use: errors, memory, text, files, time.
#pragma once

#include "kernels/alloc.h"
#include "kernels/clock.h"
#include "kernels/error.h"
#include "kernels/file.h"
#include "kernels/hash.h"
#include "kernels/text.h"
