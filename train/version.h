// The version of the program, as `graft --version` and run.json say it.
#pragma once

#define GRAFT_VERSION "0.1.0"
